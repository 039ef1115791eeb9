"""Images a second of reskit's trainer against the loops people write, data loading and augmentation included.

Every contender runs in a process of its own, as its users would run it, and trains the same architecture on
the same images at the same batch size. The processes take turns (one works while the others wait), several
rounds; the figure is the median over the rounds, the ratio is taken round by round.

    plain        the same network, float32, NCHW, eager; DataLoader with 2 workers and per-sample transforms
    torchvision  torchvision's model and per-sample transforms, loop as in its classification reference
                 (accuracy of every batch included)
    timm         timm's model, `create_loader` and optimiser factory with their defaults on a CPU
    reskit       `reskit train` as it comes: runtime measured, augmentation by batches

    python benchmarks/training_throughput.py --data PATH
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTENDERS = ("plain", "torchvision", "timm", "reskit")


@dataclass(frozen=True)
class Case:
    """One network on one kind of images."""

    recipe: str
    folder: str
    ours: str
    torchvision: str | None
    timm: str | None
    size: int
    classes: int
    batch: int
    steps: int
    crop: bool
    goal: float


CASES = {
    "resnet20-32px": Case(
        "cifar10-resnet20", "cifar10-jpeg", "cifar_resnet20", None, None, 32, 10, 128, 25, False, 1.9
    ),
    "resnet18-224px": Case(
        "imagefolder", "hymenoptera", "resnet18", "resnet18", "resnet18", 224, 2, 16, 10, True, 2.2
    ),
}


def main() -> None:
    """Run all cases, or be one contender (when called by ourselves)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar10-jpeg and hymenoptera")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        case = CASES[options.cases[0]]
        turns = reskit_turns if options.contender == "reskit" else peer_turns
        turns(case, options)
        return

    from common import write_result

    rows, ratios = [], {}
    for name in options.cases:
        figures = race(name, options)
        ours = figures["reskit"]
        for contender, values in figures.items():
            per_round = [a / b for a, b in zip(ours, values, strict=True)]
            rows.append(
                {
                    "case": name,
                    "name": contender,
                    "images_per_s": statistics.median(values),
                    "images_per_s_by_round": values,
                    "reskit_ratio": statistics.median(per_round),
                    "reskit_ratio_min": min(per_round),
                    "reskit_ratio_max": max(per_round),
                }
            )
        ratios[name] = {"reskit_over_plain": rows[-4]["reskit_ratio"], "goal": CASES[name].goal}
        for row in rows[-4:]:
            print(
                f"{name:<16}{row['name']:<12}{row['images_per_s']:8.1f} images/s  x{row['reskit_ratio']:.2f}"
            )
    write_result("training_throughput", {"rounds": options.rounds, "ratios": ratios, "rows": rows})


def race(name: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Start every contender, let them take turns, and return images a second by round."""
    command = [sys.executable, __file__, "--data", str(options.data), "--cases", name, "--rounds"]
    processes = {}
    for contender in CONTENDERS:  # one after the other: they must not disturb each other's start
        process = subprocess.Popen(
            [*command, str(options.rounds), "--contender", contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes[contender] = process
        answer(process)
    figures: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for _ in range(options.rounds):
        for contender, process in processes.items():
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            figures[contender].append(answer(process))
    for process in processes.values():
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(timeout=120)
    return figures


def answer(process: subprocess.Popen[str]) -> float:
    """Return the next figure a contender prints; 0 for the one that says it is ready."""
    for line in process.stdout:  # type: ignore[union-attr]
        if line.startswith("{"):
            return float(json.loads(line)["images_per_second"])
    raise SystemExit(f"{process.args} ended early with {process.wait()}")


def say(images_per_second: float) -> None:
    """Hand a figure to the parent."""
    print(json.dumps({"images_per_second": images_per_second}), flush=True)


def wait() -> None:
    """Wait for the parent's word; end when it hangs up."""
    if not sys.stdin.readline():
        sys.exit(0)


def reskit_turns(case: Case, options: argparse.Namespace) -> None:
    """Train with reskit; an epoch of `case.steps` steps is a turn, the first is the warm-up."""
    import reskit
    from reskit.training.callbacks import Reporter

    class Turns(Reporter):
        def on_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
            say(row["images_per_second"] if len(history) > 1 else 0.0)
            wait()

    with tempfile.TemporaryDirectory() as folder:
        reskit.train(
            case.recipe,
            data=subset(case, options.data, Path(folder) / "data"),
            out=Path(folder) / "run",
            overrides=[
                f"preprocess.size={case.size}",
                f"training.batch_size={case.batch}",
                f"training.epochs={options.rounds + 2}",
            ],
            reporter=Turns(),
        )


def subset(case: Case, data: Path, folder: Path) -> Path:
    """Return data of about `case.steps` batches: an epoch is a turn."""
    if case.crop:
        return data / case.folder
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    table = pq.read_table(data / case.folder / "train-00000-of-00005.parquet")
    pq.write_table(table.slice(0, case.steps * case.batch), folder / "train-00000-of-00001.parquet")
    test = pq.read_table(data / case.folder / "test-00000-of-00001.parquet")
    pq.write_table(test.slice(0, 500), folder / "test-00000-of-00001.parquet")
    return folder


def peer_turns(case: Case, options: argparse.Namespace) -> None:
    """Train with a peer's loop; each turn leaves out its first steps, which were loaded while waiting."""
    loader, step = {"plain": plain, "torchvision": torchvision_reference, "timm": timm_loop}[
        options.contender
    ](case, options.data)
    batches = endless(loader)
    ahead = 6  # 2 workers x prefetch factor 2, and one in each hand
    for _ in range(ahead):
        step(*next(batches))
    say(0.0)
    while True:
        wait()
        for _ in range(ahead):
            step(*next(batches))
        start = time.perf_counter()
        for _ in range(case.steps):
            step(*next(batches))
        say(case.steps * case.batch / (time.perf_counter() - start))


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield batches for ever."""
    while True:
        yield from loader


Step = Callable[[Any, Any], None]


def plain(case: Case, data: Path) -> tuple[Any, Step]:
    """Make the loop of a tutorial: defaults everywhere."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms

    import reskit

    crop = (
        transforms.RandomResizedCrop(case.size) if case.crop else transforms.RandomCrop(case.size, padding=4)
    )
    transform = transforms.Compose(
        [
            crop,
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = pictures(case, data, transform)
    loader = DataLoader(
        dataset, batch_size=case.batch, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    model = reskit.create_model(case.ours, num_classes=case.classes).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step(images: Any, labels: Any) -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        float(loss)

    return loader, step


def torchvision_reference(case: Case, data: Path) -> tuple[Any, Step]:
    """Make the step of torchvision's classification reference: criterion, SGD, accuracy of every batch."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import models
    from torchvision.transforms import v2

    import reskit

    crop = (
        v2.RandomResizedCrop(case.size, antialias=True) if case.crop else v2.RandomCrop(case.size, padding=4)
    )
    transform = v2.Compose(
        [
            crop,
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            v2.ToPureTensor(),
        ]
    )
    loader = DataLoader(
        pictures(case, data, transform),
        batch_size=case.batch,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
    )
    if case.torchvision:
        model = models.get_model(case.torchvision, weights=None, num_classes=case.classes)
    else:  # torchvision has no network for 32 px
        model = reskit.create_model(case.ours, num_classes=case.classes)
    model.train()
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step(images: Any, labels: Any) -> None:
        output = model(images)
        loss = criterion(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.inference_mode():
            _, predicted = output.topk(min(5, case.classes), 1)
            correct = predicted.eq(labels[:, None])
            float(correct[:, :1].sum()), float(correct.sum()), float(loss)

    return loader, step


def timm_loop(case: Case, data: Path) -> tuple[Any, Step]:
    """Make timm's loader, model, loss and optimiser, as its training script does on a CPU."""
    import timm
    import torch
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2

    import reskit

    loader = create_loader(
        pictures(case, data, None),
        input_size=(3, case.size, case.size),
        batch_size=case.batch,
        is_training=True,
        use_prefetcher=False,
        num_workers=2,
        device=torch.device("cpu"),
        persistent_workers=True,
        **({} if case.crop else {"train_crop_mode": "rkrc"}),
    )
    if case.timm:
        model = timm.create_model(case.timm, pretrained=False, num_classes=case.classes)
    else:  # timm has no CIFAR ResNet
        model = reskit.create_model(case.ours, num_classes=case.classes)
    model.train()
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=1e-4, momentum=0.9)

    def step(images: Any, labels: Any) -> None:
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss)

    return loader, step


class pictures:  # noqa: N801 - reads as a function
    """A map-style data set of (PIL image transformed, label), as the peers' users have it."""

    def __init__(self, case: Case, data: Path, transform: Any) -> None:
        self.transform = transform
        if case.crop:
            root = data / case.folder / "train"
            classes = sorted(path.name for path in root.iterdir())
            self.items = [
                (str(f), i) for i, name in enumerate(classes) for f in sorted((root / name).iterdir())
            ]
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(data / case.folder / "train-00000-of-00005.parquet").to_pydict()
            pairs = zip(table["img"], table["label"], strict=True)
            self.items = [(image["bytes"], label) for image, label in pairs]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import io

        from PIL import Image

        source, label = self.items[index]
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source).convert("RGB")
        return (self.transform(image) if self.transform else image), label


if __name__ == "__main__":
    main()
