"""Published weights to a bundle: nothing is trained, everything is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from reskit.bundle import Bundle
from reskit.config import TaskConfig
from reskit.data import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocess
from reskit.errors import ConfigError, WeightsError
from reskit.models import MODELS, Backbone, create_model, identify
from reskit.tasks import TASKS, Classify, Task, TaskSettings
from reskit.weights import Checkpoint, KeyReport, Weights, as_checkpoint, load_into

__all__ = ["Imported", "Statistics", "import_bundle", "import_model"]

Statistics = Literal["imagenet", "unit", "raw", "signed"]
"""How pixels reach a network: ImageNet's mean and deviation, [0, 1], 0 to 255, or [-1, 1]."""

_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "raw": ((0.0,) * 3, (1 / 255,) * 3),
    "signed": ((0.5,) * 3, (0.5,) * 3),
}
_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A network made of published weights.

    Attributes:
        model: the network, in evaluation mode.
        report: what became of every name.
        checkpoint: all that was read.
    """

    model: Backbone
    report: KeyReport
    checkpoint: Checkpoint


def import_model(
    weights: Weights, *, model: str | None = None, size: tuple[int, int] | None = None, **architecture: Any
) -> Imported:
    """Make the network that weights are of, with the weights in it.

    Args:
        weights: a file, a bundle, ``hf:owner/name``, ``torchvision:...``, or the several files of a network;
            see `reskit.weights.read_checkpoint`.
        model: the network's name; found out from the weights when absent.
        size: ``(height, width)`` of its images, for a network that takes one size and does not say which.
        architecture: further arguments of `create_model`.

    Raises:
        WeightsError: the weights cannot be read, are of no network known, or do not fit the one named.

    Example:
        >>> import_model("resnet18.pth").model.architecture["name"]
        'resnet18'
    """
    checkpoint = as_checkpoint(weights)
    options = architecture if model else {}
    arguments = {**identify(checkpoint, name=model, size=size, **options), **architecture}
    network = create_model(**arguments)
    report = load_into(network, checkpoint)
    return Imported(model=network.eval(), report=report, checkpoint=checkpoint)


def import_bundle(
    weights: Weights,
    to: str | Path,
    *,
    model: str | None = None,
    labels: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    statistics: Statistics | None = None,
    bgr: bool = False,
    task: str | Mapping[str, Any] | None = None,
) -> tuple[Bundle, Imported]:
    """Make a bundle of published weights, ready to evaluate, predict, export and serve.

    What the files say of labels and preprocessing is taken over; what they do not say must be given.

    Args:
        weights: see `import_model`.
        to: the bundle's folder.
        model: see `import_model`.
        labels: names of the classes; ``class 0`` and so on when neither these nor the files name them.
        size: side, or ``(height, width)``, of the network's input in pixels.
        statistics: how pixels reach the network.
        bgr: whether it was made for blue, green, red; its first kernels are turned round, so that the
            bundle takes RGB as every other.
        task: what the network answers: a name, or ``{"name": ..., "arguments": {...}}`` as in a recipe; that
            of the weights, else what the network is made for, by default.

    Raises:
        WeightsError: see `import_model`; or the network gives something else than classes.
        ConfigError: the files do not say how pixels are scaled, or the labels are not as many as the outputs.
    """
    wanted = (size, size) if isinstance(size, int) else size
    checkpoint = as_checkpoint(weights)
    asked = _asked(task if task is not None else checkpoint.task)
    decided = asked.kind.architecture(asked.settings) if asked else {}
    imported = import_model(checkpoint, model=model, size=wanted, **decided)
    network = imported.model
    made_for = MODELS.get(network.architecture["name"]).task
    kind, settings = asked or _Asked.of(made_for if made_for in TASKS else Classify.name, {})
    if kind.takes != "image":
        raise ConfigError(
            f"import makes bundles that take images; weights for the task {kind.name} are where training"
            " starts: reskit train --weights"
        )
    if not network.num_classes and kind is Classify:
        raise WeightsError(
            f"{checkpoint.source}: the network has no classes to tell apart (it gives {network.num_features}"
            " features an image), and a bundle needs a task; take it by reskit.import_model, or train a head:"
            " reskit train finetune --weights ..."
        )
    scaled = "unit" if statistics is None and kind.statistics == "none" else statistics
    preprocess = _preprocess(imported, wanted, scaled, bgr=bgr)
    if bgr:
        preprocess = _to_rgb(network, preprocess)
    names = list(labels or checkpoint.labels or (f"class {i}" for i in range(network.num_classes)))
    if len(names) != network.num_classes:
        raise ConfigError(f"{len(names)} labels were given for a network of {network.num_classes} classes")
    bundle = Bundle.write(
        to,
        task=kind(preprocess=preprocess, labels=names, settings=kind.settled(settings, network)),
        model=network,
        metrics={},
        provenance={
            "imported": {
                "source": checkpoint.source,
                "format": checkpoint.format,
                **checkpoint.provenance,
                "notes": list(checkpoint.notes),
                "report": imported.report.as_dict(),
            }
        },
        samples=_noise(preprocess).to(getattr(torch, kind.dtype)),
    )
    return bundle, imported


class _Asked(NamedTuple):
    """A task and what is said of it."""

    kind: type[Task]
    settings: TaskSettings

    @classmethod
    def of(cls, name: str, arguments: Mapping[str, Any]) -> _Asked:
        kind = TASKS.get(name)
        return cls(kind, kind.settings_of(arguments))


def _asked(task: str | Mapping[str, Any] | None) -> _Asked | None:
    """Read a task as a recipe has it.

    Raises:
        ConfigError, UnknownNameError: there is no such task, or it takes no such arguments.
    """
    if task is None:
        return None
    try:
        config = TaskConfig.model_validate({"name": task} if isinstance(task, str) else dict(task))
    except ValidationError as error:
        raise ConfigError(f"task: {error.errors()[0]['msg']}") from None
    return _Asked.of(config.name, config.arguments)


def _preprocess(
    imported: Imported, size: tuple[int, int] | None, statistics: Statistics | None, *, bgr: bool
) -> ImagePreprocess:
    """Return the preprocessing the files state, completed by what the caller does.

    Raises:
        ConfigError: nobody says how pixels are scaled.
    """
    network, checkpoint = imported.model, imported.checkpoint
    known = dict(checkpoint.preprocess)
    mean_image = known.pop("mean_image", None)
    name = network.architecture["name"]
    shape = checkpoint.graph.input_shape[1:] if checkpoint.graph else (None, None)
    published = MODELS.get(name).input_size[1:]
    known["size"] = size or known.get("size") or (shape if None not in shape else published)
    known["channels"] = channels = int(network.architecture["in_channels"])
    if statistics is not None or "mean" not in known:
        if statistics is None and checkpoint.format not in {"torch", "safetensors", "hub"}:
            raise ConfigError(
                f"{checkpoint.source} does not say how pixels are scaled: give statistics"
                f" ({', '.join(_STATISTICS)}): raw is 0 to 255, unit [0, 1], signed [-1, 1]"
            )
        mean, std = _STATISTICS[statistics or "imagenet"]
        known |= {"mean": (mean * channels)[:channels], "std": (std * channels)[:channels]}
    preprocess = ImagePreprocess(**known)
    if isinstance(mean_image, Tensor):
        return preprocess.with_mean_image(mean_image.flip(0) if bgr else mean_image)
    return preprocess.model_copy(update={"mean_image": mean_image})  # as a bundle has it


def _to_rgb(network: Backbone, preprocess: ImagePreprocess) -> ImagePreprocess:
    """Turn a network for BGR into one for RGB, in place, and its preprocessing too.

    Raises:
        ConfigError: it does not take three channels.
    """
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    if preprocess.channels != 3 or first.weight.shape[1] != 3:
        raise ConfigError("bgr is for networks of three channels")
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))
    return preprocess.with_statistics(preprocess.mean[::-1], preprocess.std[::-1])


def _noise(preprocess: ImagePreprocess) -> Tensor:
    """Return seeded noise for self-tests, uint8 `(N, C, H, W)`: files of weights bring no pictures along."""
    generator = torch.Generator().manual_seed(0)
    shape = (_SAMPLES, *preprocess.shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
