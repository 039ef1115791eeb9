"""Weights from the Hugging Face Hub: repositories of timm and of transformers' ResNets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reskit.errors import WeightsError
from reskit.files import sha256
from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.torch import TORCH_SUFFIXES, load_state

__all__: list[str] = []

_PREFIX = "hf:"
# A revision is a branch, a tag, a commit, or a reference such as refs/pr/1.
_SOURCE = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/\w+/[\w.-]+|[\w.-]+)(?:/(?P<file>[\w./-]+))?)?"
)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_FILES = "hf:owner/name[@revision[/file.safetensors]]"

# Networks that have the same name and layers here and in timm.
_TIMM_NAMES = frozenset(
    {
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *(f"densenet{depth}" for depth in (121, 169, 201)),
        "wide_resnet50_2",
        "wide_resnet101_2",
        "resnext50_32x4d",
        "seresnet50",
        "resnetv2_50",
        "resnetv2_101",
    }
)
# transformers says which ResNet by its blocks.
_TRANSFORMERS = {
    ("basic", (2, 2, 2, 2), (64, 128, 256, 512)): "resnet18",
    ("basic", (3, 4, 6, 3), (64, 128, 256, 512)): "resnet34",
    ("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048)): "resnet50",
    ("bottleneck", (3, 4, 23, 3), (256, 512, 1024, 2048)): "resnet101",
    ("bottleneck", (3, 8, 36, 3), (256, 512, 1024, 2048)): "resnet152",
}
_PILLOW_INTERPOLATION = {2: "bilinear", 3: "bicubic"}
# Arguments of timm's networks that change nothing in evaluation.
_TRAINING_ARGUMENTS = {"drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last", "num_classes"}


@dataclass
class _Description:
    """What a repository says of its weights, in the terms of :class:`Checkpoint`."""

    architecture: dict[str, Any] | None
    preprocess: dict[str, Any]
    labels: list[str] | None
    provenance: dict[str, Any]
    notes: list[str]


def _claims(sources: Sequence[str | Path]) -> bool:
    return len(sources) == 1 and str(sources[0]).startswith(_PREFIX)


def _read(sources: Sequence[str | Path]) -> Checkpoint:
    """Fetch a repository's weights, or take them from the cache, and read what it says of them.

    Raises:
        WeightsError: the source is not written as one, or the Hub or the cache does not have it.
    """
    source = str(sources[0])
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise WeightsError(f"{source!r} is not a source on the Hugging Face Hub: write {_FILES}")
    repository, revision, wanted = found["repository"], found["revision"] or "main", found["file"]
    if wanted and not wanted.endswith((".safetensors", *TORCH_SUFFIXES)):
        raise WeightsError(f"{source}: {wanted} is no weights file of PyTorch or safetensors: write {_FILES}")

    for name in (wanted,) if wanted else _WEIGHTS:
        path = _fetch(repository, revision, name)
        if path is not None:
            break
    else:
        raise WeightsError(_absent(source, repository, revision, wanted or " or ".join(_WEIGHTS)))
    commit = _commit(path)
    # From here on the commit is asked for: a branch may move between two files.
    config_path = _fetch(repository, commit or revision, "config.json")
    processor_path = _fetch(repository, commit or revision, "preprocessor_config.json")
    config = _json(config_path) if config_path else {}
    processor = _json(processor_path) if processor_path else {}
    described = _describe(config, processor)
    return Checkpoint(
        format="hub",
        source=source,
        state=load_state(path),
        architecture=described.architecture,
        preprocess=described.preprocess,
        labels=described.labels,
        provenance={
            "repository": repository,
            "revision": revision,
            "commit": commit,
            "sha256": {path.name: sha256(path)},
            **described.provenance,
        },
        notes=described.notes,
    )


def _fetch(repository: str, revision: str, name: str) -> Path | None:
    """Return a file of a repository on this machine, or None where it has none, or it cannot be reached.

    Raises:
        WeightsError: the repository or revision does not exist or may not be read, or the disk refuses.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        # Said again at each call: the client's own default is fixed when it is imported.
        path = hf_hub_download(repository, name, revision=revision, cache_dir=constants.HF_HUB_CACHE)
    except EntryNotFoundError:  # also where it is not in the cache and there is no network
        return None
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"the Hugging Face Hub does not give {name} of {repository} at {revision}: {reason}"
        ) from error
    return Path(path)


def _absent(source: str, repository: str, revision: str, what: str) -> str:
    """Say that weights are neither here nor to be had, and how to fetch them."""
    from huggingface_hub import constants

    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    fetch = f"hf download {repository} --revision {revision}"
    return (
        f"{source}: {what} is not in the cache {constants.HF_HUB_CACHE}, and the Hub did not give it"
        f"{offline}: check the name and run `{fetch}` where there is a network"
    )


def _commit(path: Path) -> str | None:
    """Return the commit a cached file belongs to: the cache keeps each in snapshots/<commit>."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: it is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}): fetch it again") from None
    if not isinstance(values, dict):
        raise WeightsError(
            f"{path} holds a {type(values).__name__} and should hold an object: fetch it again"
        )
    return values


def _describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> _Description:
    """Translate a repository's config.json, and transformers' preprocessor_config.json."""
    described = _Description(architecture=None, preprocess={}, labels=None, provenance={}, notes=[])
    try:
        if "architecture" in config:
            _describe_timm(config, described)
        elif config.get("model_type") == "resnet":
            _describe_transformers(config, processor, described)
        else:
            described.notes.append("the repository does not say which network it holds")
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise WeightsError(
            f"config.json of the repository makes no sense ({type(error).__name__}: {error}): "
            "give the weights file itself"
        ) from error
    return described


def _describe_timm(config: Mapping[str, Any], described: _Description) -> None:
    """Fill in what timm writes into config.json."""
    name, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
    channels = int(arguments.pop("in_chans", 3))
    changed = sorted(set(arguments) - _TRAINING_ARGUMENTS)
    if name in _TIMM_NAMES and not changed:
        described.architecture = {"name": name}
        if "num_classes" in config:
            described.architecture["num_classes"] = int(config["num_classes"])
        if channels != 3:
            described.architecture["in_channels"] = channels
    elif name in _TIMM_NAMES:
        described.notes.append(f"timm's {name} was built with other {', '.join(changed)}: name the network")
    else:
        described.notes.append(f"timm's network {name!r} has no twin here")

    labels = config.get("label_names")
    described.labels = [str(label) for label in labels] if isinstance(labels, list) else None
    pretrained = dict(config.get("pretrained_cfg") or {})
    described.provenance = {
        key: pretrained[key]
        for key in ("tag", "license", "first_conv", "classifier")
        if isinstance(pretrained.get(key), str)
    }
    if "input_size" in pretrained:
        _preprocess_timm(pretrained, described)


def _preprocess_timm(pretrained: Mapping[str, Any], described: _Description) -> None:
    """Fill in how timm prepares images, of the fields of ``pretrained_cfg``."""
    depth, height, width = (int(side) for side in pretrained["input_size"])
    mode = pretrained.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        described.notes.append(f"the repository crops by {mode!r}; the centre is taken instead")
    described.preprocess |= {
        "size": (height, width),
        "channels": depth,
        "resize": "squash" if mode == "squash" else "crop",
        "crop_fraction": float(pretrained.get("crop_pct", 0.875)),
        "interpolation": _interpolation(str(pretrained.get("interpolation", "bilinear")), described),
        **{key: tuple(float(v) for v in pretrained[key]) for key in ("mean", "std") if key in pretrained},
    }


def _describe_transformers(
    config: Mapping[str, Any], processor: Mapping[str, Any], described: _Description
) -> None:
    """Fill in what transformers writes into config.json and preprocessor_config.json."""
    depths, widths = tuple(config["depths"]), tuple(config["hidden_sizes"])
    name = _TRANSFORMERS.get((config.get("layer_type", "bottleneck"), depths, widths))
    usual = (
        config.get("embedding_size", 64) == 64
        and config.get("hidden_act", "relu") == "relu"
        and not config.get("downsample_in_first_stage", False)
    )
    if name and usual:
        described.architecture = {"name": name}
        if config.get("num_channels", 3) != 3:
            described.architecture["in_channels"] = int(config["num_channels"])
        if config.get("downsample_in_bottleneck", False):
            described.architecture["stride_first"] = True
    else:
        described.notes.append(f"a ResNet of depths {depths} and widths {widths} that has no name here")

    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        described.labels = [str(labels[key]) for key in sorted(labels, key=int)]
        if described.architecture is not None:
            described.architecture["num_classes"] = len(labels)
    if "size" in processor:
        _preprocess_transformers(processor, described)


def _preprocess_transformers(processor: Mapping[str, Any], described: _Description) -> None:
    """Fill in how transformers prepares images for its ResNets: as for ConvNeXT.

    Below 384 px the short side becomes ``size / crop_pct`` and the centre is taken, from there on both sides
    are scaled to `size`.
    """
    size = processor["size"]
    side = int(size["shortest_edge"] if isinstance(size, dict) else size)
    resample = processor.get("resample", 2)
    described.preprocess |= {
        "size": (side, side),
        "resize": "crop" if side < 384 else "squash",
        "crop_fraction": float(processor.get("crop_pct", 0.875)) if side < 384 else 1.0,
        "interpolation": _interpolation(_PILLOW_INTERPOLATION.get(resample, str(resample)), described),
        "mean": tuple(float(value) for value in processor["image_mean"]),
        "std": tuple(float(value) for value in processor["image_std"]),
    }


def _interpolation(name: str, described: _Description) -> str:
    """Return an interpolation we have, noting where it is another."""
    if name in ("bilinear", "bicubic"):
        return name
    described.notes.append(f"the repository scales images by {name!r}; bicubic is used instead")
    return "bicubic"


READERS.add("hub", Reader(claims=_claims, read=_read, files=_FILES))
