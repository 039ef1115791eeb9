"""How long `reskit optimize` takes, and what its choices do to accuracy over a whole test split.

ResNet-50 has no published weights here, so it is made to tell things apart (`picturing.py`). Its speed is
that of any ResNet-50. It is left in `--out/resnet50` for `inference.py`.

The accuracy is that of a network trained here (`--bundle`), every engine of its plan over the whole split.

    python benchmarks/optimize.py --bundle runs/cifar10-resnet20/bundle --data PATH

Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import reskit
from common import write_result
from picturing import picture_bundle
from reskit.backends import BACKENDS
from reskit.backends.writing import write_checked
from reskit.bundle import Bundle
from reskit.data import choose_mode, make_loader
from reskit.evaluation import measure, open_as_trained
from reskit.optimization.showing import Watch

GOALS = {"resnet50": 240.0, "cifar_resnet20": 60.0}
"""Seconds a search may take."""


def main() -> None:
    """Search, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a trained cifar10-resnet20")
    parser.add_argument("--data", type=Path, required=True, help="cifar10-jpeg and imagenet-sample-100 in it")
    parser.add_argument("--out", type=Path, default=Path("runs/optimize"))
    options = parser.parse_args()
    pictures = options.data / "imagenet-sample-100"
    large = picture_bundle("resnet50", pictures, options.out / "resnet50")
    small = reskit.load(shutil.copytree(options.bundle, options.out / "resnet20", dirs_exist_ok=True))
    rows: list[dict[str, Any]] = []
    with Watch() as watch:
        for bundle, given in (
            (large, {"pictures": pictures}),
            (small, {"data": options.data / "cifar10-jpeg"}),
        ):
            plan = reskit.optimize(bundle, **given, again=True, say=watch.say, step=watch.step).plan
            name = bundle.model.architecture["name"]
            rows.append({"model": name, "goal_seconds": GOALS[name], **plan.model_dump(mode="json")})
            print(f"{name}: {plan.seconds:.0f} s (asked < {GOALS[name]:.0f})")
    accuracy = whole_split(small, options.data / "cifar10-jpeg")
    for row in accuracy:
        print(f"{row['name']:<20} top-1 {row['top1']:.4f}, {row['points_lost']:+.2f} points lost")
    write_result("optimize", {"searches": rows, "accuracy": accuracy})


def whole_split(bundle: Bundle, data: Path) -> list[dict[str, Any]]:
    """Return the accuracy of each engine that the search accepted, over the whole held-out split."""
    source = open_as_trained(bundle, data)
    info = source.describe()
    mode, _ = choose_mode(info, bundle.task.preprocess)
    loader = make_loader(source[info.held_out], preprocess=bundle.task.preprocess, batch_size=250, mode=mode)
    plan = reskit.optimize(bundle, data=data).plan
    eager = reskit.evaluate(bundle, data).metrics["top1"]
    rows = [{"name": "eager", "top1": eager, "points_lost": 0.0, "keep": []}]
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for engine in plan.engines:
            if engine.name in seen:
                continue
            seen.add(engine.name)
            backend = BACKENDS.get(engine.backend)
            path = Path(folder, f"{engine.name}{backend.suffix}")
            write_checked(bundle, backend, engine.precision, path, keep=engine.keep)
            with backend.load(path) as runner:
                metrics, _ = measure(
                    lambda batch, runner=runner: torch.from_numpy(
                        runner.answer(batch["image"].contiguous().numpy())
                    ),
                    loader,
                    bundle.task,
                )
            lost = 100 * (eager - metrics["top1"])
            rows.append(
                {"name": engine.name, "top1": metrics["top1"], "points_lost": lost, "keep": list(engine.keep)}
            )
    return rows


if __name__ == "__main__":
    main()
