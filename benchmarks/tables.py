"""Rare classes in tables: our network beside gradient boosting and logistic regression; its engines.

Card transactions (frauds), thyroids that are ill (two sets) and calcifications in mammograms. Each seed
draws another test fifth, of every class in proportion, the same for all contenders. The recipe is the
first of five settings that were compared by cross-validation on four fifths of each set, drawn otherwise,
so that they share rows with the test fifths here; scikit-learn's contenders have their defaults.

    python benchmarks/tables.py --cards PATH/creditcard-sample.csv.gz --adbench PATH/adbench
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import engines_of, finished_run, write_result
from reskit.data import open_source
from reskit.data.table_sources import ROWS, RowSplit

SETS = {"annthyroid": "2_annthyroid.npz", "thyroid": "38_thyroid.npz", "mammography": "23_mammography.npz"}
METRICS = ("roc_auc", "average_precision")


def main() -> None:
    """Train, measure and write `results/tables.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", type=Path, required=True)
    parser.add_argument("--adbench", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    options = parser.parse_args()
    places = {"cards": options.cards}
    places |= {
        name: as_table(options.adbench / file, options.runs / f"{name}.csv") for name, file in SETS.items()
    }
    figures: dict[str, Any] = {"seeds": options.seeds}
    for name, place in places.items():
        rows = []
        for seed in options.seeds:
            folder = options.runs / f"{name}-{seed}"
            result, _ = finished_run("tabular", folder, data=place, overrides=[f"training.seed={seed}"])
            rows.append({"contender": "reskit", "seed": seed, **result["metrics"]})
            rows += peers(place, seed)
        figures[name] = {
            contender: {
                metric: statistics.mean(row[metric] for row in rows if row["contender"] == contender)
                for metric in METRICS
            }
            for contender in ("reskit", "gradient_boosting", "logistic_regression")
        }
        print(name, figures[name], flush=True)
        figures[name]["runs"] = rows
    figures["engines"] = engines_of(options.runs / f"cards-{options.seeds[0]}" / "bundle")
    write_result("tables", figures)


def as_table(source: Path, target: Path) -> Path:
    """Write a set of ADBench as CSV."""
    held = np.load(source)  # arrays of numbers: nothing is unpickled
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*(f"x{column}" for column in range(held["X"].shape[1])), "label"])
        for row, label in zip(held["X"].tolist(), held["y"].tolist(), strict=True):
            writer.writerow([*row, int(label)])
    return target


def peers(place: Path, seed: int) -> list[dict[str, Any]]:
    """Return what scikit-learn's contenders reach on the same split."""
    source = open_source(place, examples=ROWS, seed=seed)
    arrays = {}
    for name in ("train", "test"):
        split = source[name]
        assert isinstance(split, RowSplit)
        columns = [[float(value) for value in column] for column in split.columns().values()]
        arrays[name] = np.array(columns).T, split.labels
    contenders = {
        "gradient_boosting": HistGradientBoostingClassifier(random_state=seed),
        "logistic_regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
    }
    rows = []
    for name, model in contenders.items():
        probability = model.fit(*arrays["train"]).predict_proba(arrays["test"][0])[:, 1]
        truth = arrays["test"][1]
        scores = roc_auc_score(truth, probability), average_precision_score(truth, probability)
        rows.append({"contender": name, "seed": seed, **dict(zip(METRICS, map(float, scores), strict=True))})
    return rows


if __name__ == "__main__":
    main()
