"""Recipes: everything a training run is told, strict, in one YAML file.

A recipe is a packaged name (``digits-resnet8``) or a path to a file. It may start from another
one with ``extends:``; any key may be overridden with ``training.epochs=5``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from reskit.data.augment import Augment
from reskit.errors import ConfigError, UnknownNameError, did_you_mean

__all__ = [
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PreprocessConfig",
    "Recipe",
    "RuntimeConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "list_recipes",
    "load_recipe",
]


class _Part(BaseModel):
    """Strict and frozen: an unknown key is an error, a run cannot change its own recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _pair(value: Any) -> Any:
    """Read ``224`` as ``(224, 224)``."""
    return (value, value) if isinstance(value, int) else value


Side = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class DataConfig(_Part):
    """Where the examples are and how they are fed."""

    path: str | None = Field(None, description="file, folder or Hub name; the embedded digits when absent")
    image_column: str | None = None
    label_column: str | None = None
    on_corrupt: Literal["refuse", "skip"] = "refuse"
    holdout: float = Field(0.2, gt=0, lt=1, description="share held out when the data has one split only")
    validation: float = Field(0.0, ge=0, lt=1, description="share of train set aside to choose epochs by")
    loading: Literal["auto", "memory", "stream"] = "auto"
    workers: int | None = Field(
        None, ge=0, description="loader processes; chosen from the machine when absent"
    )


class ModelConfig(_Part):
    """Which network, by its registered name, and what differs from its published form."""

    name: str
    weights: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)

    @field_validator("arguments")
    @classmethod
    def _free(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        settled = {"name", "weights", "num_classes", "in_channels", "features_only"} & arguments.keys()
        if settled:
            raise ValueError(f"{', '.join(sorted(settled))} cannot be set here: data and task decide")
        return arguments


class PreprocessConfig(_Part):
    """How an image becomes the network's input; goes into the bundle and is served unchanged."""

    size: Annotated[tuple[Side, Side] | None, BeforeValidator(_pair)] = Field(
        None, description="(H, W) in pixels; suited to the data when absent"
    )
    resize: Literal["squash", "crop"] | None = Field(
        None, description="scale both sides, or keep proportions and cut; suited to the data when absent"
    )
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_fraction: float | None = Field(None, gt=0, le=1, description="of crop; suited when absent")
    statistics: Literal["data", "imagenet", "none"] = Field(
        "data", description="mean and standard deviation: measured on train, ImageNet's, or 0 and 1"
    )


class OptimizerConfig(_Part):
    """The optimiser; weight decay never touches biases and norms."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = True
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="adam and adamw only")


class ScheduleConfig(_Part):
    """The learning rate over time, as a factor of `optimizer.lr`, updated every step."""

    name: Literal["constant", "step", "multistep", "cosine", "onecycle"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    step_epochs: float = Field(30.0, gt=0, description="step: epochs between two decays")
    milestones: tuple[float, ...] = Field((), description="multistep: epochs at which the rate decays")
    gamma: float = Field(0.1, gt=0, le=1, description="step and multistep: the factor of one decay")
    final: float = Field(0.0, ge=0, le=1, description="cosine and onecycle: the last factor")
    peak_at: float = Field(0.3, gt=0, lt=1, description="onecycle: share of the run spent rising")


class TrainingConfig(_Part):
    """How long, with what, and when to stop."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=1, description="examples a step, over all processes and accumulation")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    clip_norm: float | None = Field(None, gt=0)
    accumulate: int = Field(1, ge=1, description="micro-batches that share one optimiser step")
    keep: Literal["last", "best"] = Field("last", description="best needs a validation split")
    patience: int | None = Field(None, ge=1, description="early stopping: epochs without improvement")
    target: float | None = Field(None, description="report the time until the main metric reaches this")
    seed: int = Field(0, ge=0, lt=2**20)
    deterministic: bool = False
    checkpoint_seconds: float = Field(60.0, ge=0, description="at most this much work is lost in a crash")
    checkpoint_steps: int | None = Field(None, ge=1, description="also every so many steps")

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}"
            )
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.name != "onecycle":
            raise ValueError(
                f"warmup_epochs {self.schedule.warmup_epochs:g} leaves nothing of {self.epochs} epochs"
            )
        return self


class RuntimeConfig(_Part):
    """Device, precision and memory layout; ``auto`` means measured on the first batch."""

    device: Literal["auto", "cpu"] = Field("auto", description="auto takes an accelerator where there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    layout: Literal["auto", "nchw", "channels_last"] = "auto"
    compile: bool = False
    threads: int | None = Field(None, ge=1)


class Recipe(_Part):
    """One training run. See the packaged ``recipes/*.yaml`` for examples."""

    name: str
    description: str = ""
    source: str = Field("", description="the paper or page the settings come from")
    task: str = "classify"
    data: DataConfig = DataConfig()
    model: ModelConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: Augment = Augment()
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()


def list_recipes() -> list[str]:
    """Return the names of the packaged recipes."""
    folder = resources.files("reskit.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(name: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check every key.

    Args:
        name: a packaged name, a path to a YAML file, or a mapping. A file may name what it extends by a path
            relative to itself.
        overrides: ``key.path=value`` each, the value in YAML.

    Raises:
        UnknownNameError: no packaged recipe has the name and no file is there.
        ConfigError: not YAML, an unknown key (with a suggestion), or a value out of its range.
    """
    if isinstance(name, Mapping):
        values, label = _extended(name, Path(), ()), "recipe"
    else:
        values, label = _read(str(name), Path(), ()), f"recipe {str(name)!r}"
    for override in overrides:
        values = _merge(values, _parse_override(override))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{label}: {_explain(error)}") from None


def _read(name: str, folder: Path, above: tuple[str, ...]) -> dict[str, Any]:
    """Read one YAML mapping from a file or the packaged recipes, laid on what it extends.

    Args:
        name: a path, relative to `folder`, or a packaged name.
        folder: where it is named.
        above: the recipes that extend it.
    """
    path = folder / name
    try:
        if path.suffix in {".yaml", ".yml"} or path.is_file():
            text = path.read_text(encoding="utf-8")
            name, folder = str(path.resolve()), path.parent
        elif name in list_recipes():
            text = (resources.files("reskit.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
        else:
            raise UnknownNameError("recipe", name, list_recipes())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe file {name!r} cannot be read: {error}") from None
    values = _parse_yaml(text, f"recipe {name!r}")
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {name!r} must be a mapping of keys, not {type(values).__name__}")
    if name in above:
        raise ConfigError(f"recipe {above[0]!r}: `extends` goes round in a circle at {name!r}")
    return _extended(values, folder, (*above, name))


def _extended(values: Mapping[str, Any], folder: Path, above: tuple[str, ...]) -> dict[str, Any]:
    """Return `values` laid on the recipe they extend, if any."""
    values = dict(values)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"`extends` must be the name or path of one recipe, not {base!r:.60}")
    return _merge(_read(base, folder, above), values)


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number, as in YAML 1.2, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_yaml(text: str, label: str) -> Any:
    """Parse YAML; `label` says in errors what was to be parsed."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{label} is not valid YAML: {' '.join(str(error).split())}") from None


def _parse_override(text: str) -> dict[str, Any]:
    """Turn ``a.b=1`` into ``{"a": {"b": 1}}``."""
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"override {text!r} is not of the form key.path=value, as in training.epochs=5")
    tree = _parse_yaml(value, f"the value of override {text!r:.60}")
    for key in reversed(path.split(".")):
        tree = {key: tree}
    return dict(tree)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `over` laid on it, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError) -> str:
    """Say the first few problems in a line, with the known key nearest to an unknown one."""
    problems = []
    for item in error.errors()[:3]:
        where = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            *parents, word = map(str, item["loc"])
            problems.append(f"unknown key {where!r}{did_you_mean(word, _known_keys(parents))}")
        elif item["type"] == "missing":
            problems.append(f"{where} is missing")
        elif item["type"] == "value_error":  # of a whole part: the message names the values
            problems.append(f"{where or 'recipe'}: {item['msg'].removeprefix('Value error, ')}")
        else:
            problems.append(f"{where or 'recipe'}: {item['msg']} (got {item['input']!r:.60})")
    return "; ".join(problems)


def _known_keys(parents: Iterable[str]) -> list[str]:
    """Return the keys accepted under a path of a recipe."""
    part: type[BaseModel] = Recipe
    for key in parents:
        annotation = part.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        part = annotation
    return list(part.model_fields)
