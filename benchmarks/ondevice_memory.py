"""Memory, time and accuracy of on-device transfer learning against plain fine-tuning, MobileNetV2 at 224 px.

    full    every layer trains
    plain   the last blocks, the layer after them and the head train; nothing below
    masks   as plain, with ReLU6 keeping a packed mask: what of the saving is due to that alone
    lean    the same layers by the on-device recipe (`reskit.training.ondevice`, after MobileTL)

`activations` is what autograd keeps for the backward pass; `state` are parameters, buffers and momentum;
`peak` is the most memory at one time of an SGD step with momentum: state, input batch, activations, gradients
and what the operators hold while they work, as torch's allocator saw it. `resident` is how much a fresh
process grew over such steps by the account of the system, which has the allocator's slack and the scratch
memory of the kernel libraries in it. Steps are timed in turns, so measure on an idle machine.

Accuracy needs pre-trained weights. The layers below the blocks do not change, so what they give is computed
once for every image and its mirror image, and only the layers above are run in training.

    python benchmarks/ondevice_memory.py --no-time
    python benchmarks/ondevice_memory.py --weights FILE --data PATH/hymenoptera
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports a missing GPU as an error

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.data import ImagePreprocess, make_loader, open_source
from reskit.models import create_model
from reskit.nn.lean import PackedReLU6
from reskit.training.memory import measure_training_memory
from reskit.training.ondevice import make_lean, plain_blocks, split_blocks
from reskit.weights import load_into

CONTENDERS = ("full", "plain", "masks", "lean")
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
SIZE, MIB = 224, 2**20
GOALS = {"activations_lean_over_plain": 0.55, "peak_lean_over_full": 0.4, "top1_lean_below_plain": 0.02}


def main() -> None:
    """Measure what is asked for and write `results/ondevice-memory.json`."""
    options = arguments()
    if options.contender:
        print(json.dumps(resident_growth(options.contender, options)))
        return
    from common import write_result

    figures: dict[str, Any] = {
        "setup": f"mobilenet_v2, 2 classes, batch {options.batch}, {SIZE} px, float32, SGD with momentum,"
        f" {options.blocks} blocks",
        "goals": GOALS,
        "threads": torch.get_num_threads(),
        "memory": {layout: memory(layout, options) for layout in LAYOUTS},
    }
    if options.time:
        figures["time"] = {layout: step_times(layout, options) for layout in LAYOUTS}
    if options.weights:
        figures["accuracy"] = accuracy(options)
    write_result("ondevice-memory", figures)


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15, help="of the timed steps")
    parser.add_argument("--no-time", dest="time", action="store_false")
    parser.add_argument("--weights", help="pre-trained MobileNetV2, for the accuracy")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hymenoptera"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--layout", choices=LAYOUTS, default="nchw", help=argparse.SUPPRESS)
    return parser.parse_args()


def convert(contender: str, model: nn.Module, blocks: int) -> nn.Module:
    """Make `model` train as the contender does."""
    if contender == "lean":
        make_lean(model, blocks)
    elif contender != "full":
        plain_blocks(model, blocks)
    if contender == "masks":
        for layer in split_blocks(model, blocks)[1]:
            for parent in layer.modules():
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.ReLU6):
                        setattr(parent, name, PackedReLU6())
    return model.train()


def training_step(contender: str, options: argparse.Namespace, layout: str) -> tuple[Callable[[], None], Any]:
    """Return a function that makes one step on a batch of noise, and every tensor held between steps."""
    torch.manual_seed(0)
    memory_format = LAYOUTS[layout]
    model = convert(contender, create_model("mobilenet_v2", num_classes=2), options.blocks)
    model.to(memory_format=memory_format)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1e-3, momentum=0.9)
    images = torch.randn(options.batch, 3, SIZE, SIZE).contiguous(memory_format=memory_format)
    labels = torch.arange(options.batch) % 2

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def held() -> tuple[list[Tensor], list[Tensor]]:
        momenta = [value for state in optimizer.state.values() for value in state.values()]
        return [*model.parameters(), *model.buffers()], [t for t in momenta if isinstance(t, Tensor)]

    return step, (held, images)


def memory(layout: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the memory of every contender, in MiB; print the table."""
    rows: dict[str, dict[str, Any]] = {}
    print(f"\n{layout:<14}{'activations':>12}{'state':>8}{'peak':>8}{'resident':>10}   MiB")
    for contender in CONTENDERS:
        step, (held, images) = training_step(contender, options, layout)
        step()  # makes the momenta
        model, momenta = held()
        measured = measure_training_memory(step, held=model)
        state = sum(tensor.nbytes for tensor in (*model, *momenta))
        rows[contender] = row = {
            "activations": measured.activation_bytes / MIB,
            "state": state / MIB,
            "batch": images.nbytes / MIB,
            "step_peak": measured.peak_bytes / MIB,
            "peak": (state + images.nbytes + measured.peak_bytes) / MIB,
            **resident_of_fresh_process(contender, options, layout),
            "saved": by_shape(measured.saved),
        }
        grown = f"{row['resident_growth']:10.1f}" if row["resident_growth"] is not None else f"{'-':>10}"
        print(f"{contender:<14}{row['activations']:12.1f}{row['state']:8.1f}{row['peak']:8.1f}{grown}")
    ratios = {
        "activations_lean_over_plain": rows["lean"]["activations"] / rows["plain"]["activations"],
        "activations_lean_over_masks": rows["lean"]["activations"] / rows["masks"]["activations"],
        "activations_lean_over_full": rows["lean"]["activations"] / rows["full"]["activations"],
        "peak_lean_over_full": rows["lean"]["peak"] / rows["full"]["peak"],
        "peak_lean_over_plain": rows["lean"]["peak"] / rows["plain"]["peak"],
    }
    print("  ".join(f"{name} {value:.3f}" for name, value in ratios.items()))
    return {"rows": rows, "ratios": ratios}


def by_shape(saved: Any) -> list[dict[str, Any]]:
    """Return what was saved, added up by shape and type, largest first."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for storage in saved:
        groups.setdefault((storage.shape, storage.dtype), []).append(storage.bytes)
    rows = [
        {"shape": shape, "dtype": dtype, "count": len(sizes), "mib": sum(sizes) / MIB}
        for (shape, dtype), sizes in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["mib"])


def resident_of_fresh_process(contender: str, options: argparse.Namespace, layout: str) -> dict[str, Any]:
    """Return what a process of its own says of its resident memory around a few steps."""
    command = [sys.executable, __file__, "--contender", contender, "--layout", layout]
    command += ["--batch", str(options.batch), "--blocks", str(options.blocks)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, Any] = json.loads(said)
    return figures


def resident_growth(contender: str, options: argparse.Namespace) -> dict[str, float | None]:
    """Return resident memory before the first step, its peak over three steps, and the difference, in MiB."""
    step, _ = training_step(contender, options, options.layout)
    if not sys.platform.startswith("linux"):
        return {"resident_before": None, "resident_peak": None, "resident_growth": None}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: importing has one of its own
    before = resident("VmRSS")
    for _ in range(3):
        step()
    peak = resident("VmHWM")
    return {"resident_before": before, "resident_peak": peak, "resident_growth": peak - before}


def resident(field: str) -> float:
    """Return a line of this process's account, in MiB; its peak is, unlike getrusage's, not its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def step_times(layout: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time the contenders' steps in turns; return medians and, round by round, the ratio to plain."""
    steps = {contender: training_step(contender, options, layout)[0] for contender in CONTENDERS}
    seconds: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for turn in range(options.rounds + 2):
        for contender, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                seconds[contender].append(time.perf_counter() - start)
    rows = {}
    for contender, values in seconds.items():
        ratios = [ours / plain for ours, plain in zip(values, seconds["plain"], strict=True)]
        rows[contender] = {
            "step_seconds": statistics.median(values),
            "over_plain": statistics.median(ratios),
            "over_plain_min": min(ratios),
            "over_plain_max": max(ratios),
        }
        print(f"{layout:<14}{contender:<8}{1e3 * statistics.median(values):8.0f} ms", end="")
        print(f"   x{statistics.median(ratios):.2f} of plain")
    return rows


def accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Train plain and lean from the weights for every seed; return top-1 on the held-out images."""
    source = open_source(options.data)
    info = source.describe()
    preprocess = ImagePreprocess(size=(SIZE, SIZE), resize="crop", crop_fraction=0.875)
    pictures = {split: read(source[split], preprocess) for split in ("train", info.held_out)}
    rows = []
    for seed in options.seeds:
        row: dict[str, Any] = {"seed": seed}
        for contender in ("plain", "lean"):
            torch.manual_seed(seed)
            model = create_model("mobilenet_v2", num_classes=len(info.classes))
            load_into(model, options.weights, adapt=True)
            convert(contender, model, options.blocks)
            row[contender] = fine_tune(model, pictures["train"], pictures[info.held_out], seed, options)
        rows.append(row)
        print(f"seed {seed}: top1 plain {row['plain']:.4f}, lean {row['lean']:.4f}")
    means = {name: statistics.mean(row[name] for row in rows) for name in ("plain", "lean")}
    return {
        "data": options.data.name,
        "split": info.held_out,
        "weights": Path(options.weights).name,
        "epochs": options.epochs,
        "lr": options.lr,
        "rows": rows,
        "mean": means,
        "lean_below_plain": means["plain"] - means["lean"],
    }


def read(split: Any, preprocess: ImagePreprocess) -> tuple[Tensor, Tensor]:
    """Return the normalised images `(N, 3, H, W)` of a split, and their labels."""
    batches = list(make_loader(split, preprocess=preprocess, batch_size=64))
    images = torch.cat([batch["image"] for batch in batches])
    return preprocess.normalize()(images), torch.cat([batch["label"] for batch in batches])


def fine_tune(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    seed: int,
    options: argparse.Namespace,
) -> float:
    """Train the layers above on what those below give; return top-1 on the held-out images."""
    below, above = split_blocks(model, options.blocks)
    body, top = nn.Sequential(*below), nn.Sequential(*above, model.pool, nn.Flatten(), model.head)
    images, labels = train
    views = torch.stack([features(body, images), features(body, images.flip(3))])
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    trainable = [parameter for parameter in top.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=options.lr, momentum=0.9, nesterov=True)
    steps = options.epochs * (len(labels) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    top.train()
    for _ in range(options.epochs):
        order = torch.randperm(len(labels), generator=generator)
        for rows in order[: len(order) // options.batch * options.batch].view(-1, options.batch):
            mirrored = torch.randint(2, (len(rows),), generator=generator)
            F.cross_entropy(top(views[mirrored, rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    images, labels = held_out
    predicted = features(top.eval(), features(body, images)).argmax(1)
    return float((predicted == labels).float().mean())


@torch.no_grad()
def features(layers: nn.Module, images: Tensor) -> Tensor:
    """Return what `layers` give for `images`, 32 at a time."""
    return torch.cat([layers(part.clone()) for part in images.split(32)])


if __name__ == "__main__":
    main()
