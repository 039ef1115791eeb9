"""A residual network with a quarter of its blocks left out: what it loses in accuracy and gains in speed.

Blocks are chosen on training images, one at a time; the rest learns on for a few epochs, the intact network
does not; top-1 is that of the whole held-out split. Other choices of as many blocks are measured too, as they
were cut: the cheapest by one lesion study, and by the ratio |F(x)|/|x|. Then both networks take turns, in
float32: eager PyTorch and, where it is installed, OpenVINO. The ratio is taken round by round.

    python benchmarks/pruning.py --bundle runs/resnet56/bundle --data PATH/cifar10-jpeg

Goes on with a pruned network it finds in `--out`. Measure speed on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import reskit
from common import RESULTS, write_result
from reskit.backends import BACKENDS
from reskit.backends.answers import answers
from reskit.backends.servable import INPUT
from reskit.backends.writing import write_checked
from reskit.bundle import Bundle
from reskit.errors import MissingExtraError
from reskit.evaluation.run import open_as_trained
from reskit.insight import lesion_study, prune, without_blocks
from reskit.plots.insight import lesions, pruning

GOAL = {"share": 0.25, "points": 1.0}
BATCHES = (1, 64)


def main() -> None:
    """Prune, measure and write `results/pruning.json` with two pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--share", type=float, default=GOAL["share"])
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()

    intact, folder = reskit.load(options.bundle), options.out / "pruned"
    if not (folder / "pruning.json").exists():
        prune(
            intact,
            folder,
            data=options.data,
            share=options.share,
            examples=options.examples,
            epochs=options.epochs,
            overrides=options.overrides,
        )
    outcome = json.loads((folder / "pruning.json").read_text())
    study = lesion_study(intact, options.data, examples=options.examples).as_dict()
    pictures = [
        pruning(outcome, RESULTS / "pruning.png").name,
        lesions(study, RESULTS / "pruning-lesion.png").name,
    ]
    metrics, blocks = outcome["metrics"], study["blocks"]
    lost = 100 * (metrics["intact"]["top1"] - metrics["tuned"]["top1"])
    figures: dict[str, Any] = {
        "model": intact.config.architecture,
        "data": options.data.name,
        "goal": GOAL,
        "blocks": len(blocks),
        "removed": outcome["removed"],
        "share_removed": len(outcome["removed"]) / len(blocks),
        "split": outcome["split"],
        "top1": {stage: figures["top1"] for stage, figures in metrics.items()},
        "points_lost": lost,
        "top1_as_cut": as_cut(intact, options.data, study, outcome),
        "latency": latency(intact, Bundle.load(outcome["bundle"]), options.out, options.rounds),
        "threads": torch.get_num_threads(),
        "epochs": options.epochs,
        "settings": options.overrides,
        "steps": outcome["steps"],
        "study": {**study, "files": {}},
        "pictures": pictures,
    }
    print(f"{len(outcome['removed'])} of {len(blocks)} blocks left out, {lost:+.2f} points of top-1 lost")
    for name, batches in figures["latency"].items():
        for batch, row in batches.items():
            print(f"{name}, batch {batch}: {row['ratio']:.2f}x as fast")
    write_result("pruning", figures)


def as_cut(
    bundle: Bundle, data: Path, study: dict[str, Any], outcome: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the held-out top-1 right after cutting, by the way in which as many blocks were chosen."""
    able = [block for block in study["blocks"] if block["removable"]]
    source, count = open_as_trained(bundle, data), len(outcome["removed"])
    ways = {
        "one at a time, by lesion": outcome["removed"],
        "at once, by lesion": [b["name"] for b in sorted(able, key=lambda b: b["loss"])[:count]],
        "at once, by ratio": [b["name"] for b in sorted(able, key=lambda b: b["ratio"])[:count]],
    }
    found = {}
    for way, names in ways.items():
        network = without_blocks(bundle.model, names)
        cut = Bundle(path=bundle.path, config=bundle.config, task=bundle.task, model=network)
        found[way] = {"blocks": names, "top1": reskit.evaluate(cut, source).metrics["top1"]}
        print(f"{way}: top-1 {found[way]['top1']:.4f} as cut")
    return found


def latency(intact: Bundle, pruned: Bundle, folder: Path, rounds: int) -> dict[str, dict[int, Any]]:
    """Return milliseconds of both networks and the ratio, by engine and batch size."""
    engines = {"eager": [_eager(bundle) for bundle in (intact, pruned)]}
    try:
        engines["openvino"] = [
            _openvino(bundle, folder / f"{name}.xml")
            for name, bundle in (("intact", intact), ("pruned", pruned))
        ]
    except MissingExtraError as error:
        print(f"OpenVINO is left out: {error}")
    return {
        name: {batch: _in_turns(calls, intact, batch, rounds) for batch in BATCHES}
        for name, calls in engines.items()
    }


Call = Callable[[np.ndarray], object]


def _eager(bundle: Bundle) -> Call:
    answer = answers(bundle, "eager")
    return lambda pixels: answer(torch.from_numpy(pixels))


def _openvino(bundle: Bundle, path: Path) -> Call:
    backend = BACKENDS.get("openvino")
    runner = backend.load(write_checked(bundle, backend, "fp32", path).path)
    return lambda pixels: runner.run({INPUT: pixels})


def _in_turns(calls: list[Call], bundle: Bundle, batch: int, rounds: int) -> dict[str, float]:
    """Time calls for a fifth of a second each round; medians, and the median of the rounds' ratios."""
    preprocess = bundle.task.preprocess
    shape = (batch, preprocess.channels, *preprocess.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for call in calls:
        call(pixels)
    times = np.array([[_seconds(call, pixels) for call in calls] for _ in range(rounds)])
    intact, pruned = (1e3 * float(np.median(column)) for column in times.T)
    ratios = (times[:, 0] / times[:, 1]).tolist()
    return {
        "intact_ms": intact,
        "pruned_ms": pruned,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def _seconds(call: Call, pixels: np.ndarray) -> float:
    """Return the median time of calls that fill a fifth of a second."""
    taken: list[float] = []
    while sum(taken) < 0.2:
        begun = time.perf_counter()
        call(pixels)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
