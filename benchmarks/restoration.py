"""Denoising and super-resolution against published figures; what a denoiser gains by `reskit optimize`.

`parity`: DnCNN's published weights, imported, at sigma 25 on BSD68 and Set12. `bicubic`: Set5 and Set14 by
interpolation alone. `denoise`, `superresolve`: the recipes denoise-dilated and superresolve-vdsr trained on
400 grey pictures, the CPU minutes of training stated; BSD68 at sigma 25, Set5 and Set14 at x2. `onnx`: each
network as ONNX against eager. `optimize`: the trained denoiser by the engine that `reskit optimize` chose for
throughput against eager float32: whole pictures, contenders in turns, the ratio of each round and its
median; and decibels of both on all of BSD68.

    python benchmarks/restoration.py parity bicubic denoise superresolve onnx optimize --data PATH

Without names all parts run, in this order. Goes on with what it finds in `--runs`. Nothing else may run on
the machine while `optimize` does. `--data` is the folder that holds `restoration` and `weights`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import reskit
from common import RESULTS, finished_run, write_result
from reskit.backends.answers import answers
from reskit.bundle import Bundle
from reskit.data import ImagePreprocess
from reskit.environment import usable_cores
from reskit.models import MODELS
from reskit.tasks import TASKS

DNCNN = {
    "bsd68": {"asked": 29.20, "within": 0.02, "published": 29.23},
    "set12": {"asked": 30.38, "within": 0.03, "published": 30.43},
}
"""In dB at sigma 25: asked for (independent code on the same files); Zhang et al. 2017, tables II and III."""
BICUBIC = {
    "set5": {2: 33.66, 3: 30.39, 4: 28.42},
    "set14": {2: 30.24, 3: 27.55, 4: 26.00},
}
"""In dB: Kim et al. 2016, table 3."""
DENOISED = {"asked": 28.7, "BM3D": 28.57, "DnCNN-S": 29.23}
"""In dB on BSD68 at sigma 25: the last two from Zhang et al. 2017, table II."""
ENLARGED = {"asked": 37.0, "bicubic": 33.66, "VDSR": 37.53}
"""In dB on Set5 at x2: the last two from Kim et al. 2016, table 3."""
MINUTES = 40
GAIN, LOSS = 2.5, 0.1
ROUNDS, PICTURES = 7, 6

Part = Callable[["Places"], None]


class Places:
    """Where data are and runs go, and what else was asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.pictures = options.data / "restoration"
        self.weights = options.data / "weights" / "dncnn-s25" / "net.pth"
        self.runs: Path = options.runs
        self.overrides: list[str] = options.overrides

    def trained(self, part: str) -> Bundle:
        """Return the bundle that a part trained.

        Raises:
            SystemExit: it did not run yet.
        """
        folder = self.runs / part / "bundle"
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not there: run the part {part!r} first")
        return reskit.load(folder)


def parity(places: Places) -> None:
    """Evaluate DnCNN's published weights."""
    bundle, _ = reskit.import_bundle(places.weights, places.runs / "dncnn-s25")
    rows = []
    for name, row in DNCNN.items():
        metrics = reskit.evaluate(bundle, places.pictures / name).metrics
        rows.append({"data": name, **row, **metrics, "reached": _near(metrics["psnr"], row)})
        print(f"DnCNN-S on {name}: {metrics['psnr']:.3f} dB (asked {row['asked']} +- {row['within']})")
    write_result("restoration-parity", {"sigma": 25, "rows": rows})


def bicubic(places: Places) -> None:
    """Evaluate interpolation: a VDSR whose detail is zero."""
    rows = []
    for name, published in BICUBIC.items():
        for scale, figure in published.items():
            bundle = _interpolation(places.runs / f"bicubic-x{scale}", scale)
            metrics = reskit.evaluate(bundle, places.pictures / name).metrics
            rows.append({"data": name, "scale": scale, "published": figure, **metrics})
            print(f"bicubic x{scale} on {name}: {metrics['psnr']:.3f} dB (published {figure})")
    write_result("restoration-bicubic", {"rows": rows, "asked": "within 0.1 dB of the published on set5"})


def denoise(places: Places) -> None:
    """Train the dilated denoiser."""
    figures = _train("denoise", "denoise-dilated", "bsd68", places)
    bundle = places.trained("denoise")
    figures["set12"] = reskit.evaluate(bundle, places.pictures / "set12").metrics
    _tell("dilated denoiser on bsd68", figures)
    write_result("restoration-denoise", {**figures, "sigma": 25, "on_bsd68": DENOISED})


def superresolve(places: Places) -> None:
    """Train the network of the VDSR kind."""
    figures = _train("superresolve", "superresolve-vdsr", "set5", places)
    bundle = places.trained("superresolve")
    figures["set14"] = reskit.evaluate(bundle, places.pictures / "set14").metrics
    _tell("VDSR's kind on set5", figures)
    write_result("restoration-superresolve", {**figures, "scale": 2, "on_set5": ENLARGED})


def onnx(places: Places) -> None:
    """Export every kind of network; the writer holds the file against eager at two batch sizes."""
    rows = []
    for name, arguments in (
        ("dncnn", {}),
        ("dilated_denoiser", {}),
        ("dilated_denoiser", {"shuffle": 2}),
        ("vdsr", {}),
        ("vdsr", {"subpixel": True, "scale": 3}),
        ("edsr_baseline", {"scale": 4}),
    ):
        for channels in (1, 3):
            folder = places.runs / "onnx"
            torch.manual_seed(0)
            model = reskit.create_model(name, in_channels=channels, **arguments)
            # As it begins, the last layer gives hardly anything, and there would be nothing to hold.
            torch.nn.init.kaiming_normal_(model.head.weight)
            scale = {"scale": arguments["scale"]} if "scale" in arguments else {}
            bundle = _bundle(model, _made(folder) / "bundle", scale, side=32)
            path = folder / f"{name}.onnx"
            path.unlink(missing_ok=True)
            found = reskit.export(bundle, path, to="onnx")
            row = {"model": name, "arguments": arguments, "in_channels": channels}
            rows.append({**row, "largest_differences": found.as_dict()["differences"]})
            print(f"{name} {arguments} {channels} channels: {found.differences}")
    write_result("restoration-onnx", {"rows": rows})


def optimize(places: Places) -> None:
    """Race the engine that was chosen against eager float32."""
    source = places.trained("denoise")
    bundle = reskit.load(shutil.copytree(source.path, places.runs / "optimized", dirs_exist_ok=True))
    data = places.pictures / "bsd68"
    plan = reskit.optimize(bundle, goal="throughput", data=data, say=print).plan
    psnr = {engine: reskit.evaluate(bundle, data, engine=engine).metrics["psnr"] for engine in _ENGINES}
    images = [bundle.task.read(path) for path in sorted(data.glob("*.png"))[:PICTURES]]
    pixels = torch.stack([image if image.shape[1] < image.shape[2] else image.mT for image in images])
    seconds: dict[str, list[float]] = {engine: [] for engine in _ENGINES}
    for _ in range(ROUNDS):
        for engine in _ENGINES:
            network, begin = answers(bundle, engine), time.perf_counter()
            bundle.task.outputs(network, pixels)
            seconds[engine].append(time.perf_counter() - begin)
    ratios = [slow / fast for slow, fast in zip(*(seconds[engine][1:] for engine in _ENGINES), strict=True)]
    gain, lost = statistics.median(ratios), psnr["eager"] - psnr["throughput"]
    chosen = plan.engine("throughput")
    print(f"{chosen.name}: {gain:.2f} x eager float32 (asked {GAIN}), {lost:+.3f} dB lost (asked < {LOSS})")
    figures = {
        "engine": chosen.model_dump(mode="json"),
        "engines": [engine.model_dump(mode="json") for engine in plan.engines],
        "pictures": list(pixels.shape),
        "seconds": seconds,
        "ratios": ratios,
        "gain": gain,
        "psnr": psnr,
        "lost_db": lost,
        "asked": {"gain": GAIN, "lost_db": LOSS},
        "reached": gain >= GAIN and lost <= LOSS,
    }
    write_result("restoration-optimize", figures)


PARTS: dict[str, Part] = {
    part.__name__: part for part in (parity, bicubic, denoise, superresolve, onnx, optimize)
}
_ENGINES = ("eager", "throughput")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/restoration"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="of the recipes")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for name in options.parts or PARTS:
        PARTS[name](Places(options))


def _train(part: str, recipe: str, held_out: str, places: Places) -> dict[str, Any]:
    """Train a recipe or read its run; copy its picture to the results."""
    folder = places.runs / part
    result, history = finished_run(
        recipe,
        folder,
        data=places.pictures / "train400",
        overrides=[f"data.test={places.pictures / held_out}", *places.overrides],
    )
    minutes = sum(row["seconds"] * row["cpu_utilisation"] for row in history) * usable_cores() / 60
    shutil.copy(folder / "evaluation" / "restored.png", _made(RESULTS) / f"restoration-{part}.png")
    validation = [row["validation_psnr"] for row in history if "validation_psnr" in row]
    training = result["training"]
    return {
        "recipe": recipe,
        "overrides": places.overrides,
        "trained_on": "train400",
        "held_out": held_out,
        "metrics": result["metrics"],
        "cpu_minutes": minutes,
        "cpu_minutes_asked": MINUTES,
        "cpu_minutes_are": "of training, cores x utilisation x seconds; validation after each epoch left out",
        "training": training,
        "validation_psnr_by_epoch": validation,
    }


def _interpolation(folder: Path, scale: int) -> Bundle:
    model = reskit.create_model(
        "vdsr", in_channels=1, scale=scale, depth=2, width=1, subpixel=True, zero_init=True
    )
    return _bundle(model, folder, {"scale": scale})


def _bundle(model: Any, folder: Path, settings: dict[str, Any], *, side: int = 128) -> Bundle:
    """Return a bundle of a network for the task it is made for."""
    kind = TASKS.get(MODELS.get(model.architecture["name"]).task)
    channels = model.architecture["in_channels"]
    zero, one = (0.0,) * channels, (1.0,) * channels
    preprocess = ImagePreprocess(size=(side, side), channels=channels, mean=zero, std=one)
    generator = torch.Generator().manual_seed(0)
    return Bundle.write(
        folder,
        task=kind(preprocess=preprocess, settings=kind.settings_of(settings)),
        model=model,
        metrics={},
        provenance={"made": "benchmarks/restoration.py"},
        samples=torch.rand(4, channels, side, side, generator=generator) * 255,
    )


def _tell(what: str, figures: dict[str, Any]) -> None:
    print(f"{what}: {figures['metrics']['psnr']:.3f} dB, {figures['cpu_minutes']:.1f} CPU minutes")


def _near(figure: float, row: dict[str, float]) -> bool:
    return abs(figure - row["asked"]) <= row["within"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
