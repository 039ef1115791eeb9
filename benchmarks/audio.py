"""Spoken digits: ResNet-20 on spectra beside a support vector machine on the same; its engines.

Of the Free Spoken Digit Dataset takes 0 to 4 of each speaker and digit are the test split, as its authors
have it, all others are learnt from. The peer is scikit-learn's support vector machine with a Gaussian
kernel on the very pictures the network is given, standardised.

    python benchmarks/audio.py --data PATH/free-spoken-digits
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import reskit
from common import engines_of, finished_run, write_result
from reskit.evaluation import open_as_trained

TEST_TAKES = 5


def main() -> None:
    """Train, measure and write `results/audio.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of recordings.parquet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/audio"))
    options = parser.parse_args()
    data = prepared(options.data / "recordings.parquet", options.runs / "data")
    rows = []
    for seed in options.seeds:
        folder = options.runs / f"digits-{seed}"
        result, _ = finished_run("audio", folder, data=data, overrides=[f"training.seed={seed}"])
        rows.append({"seed": seed, **result["metrics"], "seconds": result["training"]["seconds"]})
        print(rows[-1], flush=True)
    first = options.runs / f"digits-{options.seeds[0]}" / "bundle"
    figures: dict[str, Any] = {
        "seeds": options.seeds,
        "top1": statistics.mean(row["top1"] for row in rows),
        "runs": rows,
        "support_vector_machine": {"top1": machine_on_pictures(first)},
        "engines": engines_of(first),
    }
    print(figures["top1"], figures["support_vector_machine"])
    write_result("audio", figures)


def prepared(source: Path, folder: Path) -> Path:
    """Return a folder with the splits as Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(source)
    takes = table["take"].to_numpy()
    kept = table.select(["audio", "digit"])
    pq.write_table(kept.filter(pa.array(takes >= TEST_TAKES)), folder / "train.parquet")
    pq.write_table(kept.filter(pa.array(takes < TEST_TAKES)), folder / "test.parquet")
    return folder


def machine_on_pictures(bundle: Path) -> float:
    """Return the peer's accuracy on the test split."""
    loaded = reskit.load(bundle)
    source = open_as_trained(loaded)
    pictures = {
        name: np.stack(
            [loaded.task.read(item).numpy().ravel() for item in source[name].items(source[name].rows)]
        )
        for name in ("train", "test")
    }
    model = make_pipeline(StandardScaler(), SVC(C=10))
    model.fit(pictures["train"], source["train"].labels)
    return float(model.score(pictures["test"], source["test"].labels))


if __name__ == "__main__":
    main()
