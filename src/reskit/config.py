"""What a recipe may say: everything a training run is told, strict and typed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from reskit.data.augment import Augment
from reskit.data.config import DataConfig

__all__ = [
    "ModelConfig",
    "OptimizerConfig",
    "PreprocessConfig",
    "Recipe",
    "RuntimeConfig",
    "ScheduleConfig",
    "TaskConfig",
    "TrainingConfig",
    "TransferConfig",
]


class _Part(BaseModel):
    """Strict and frozen: an unknown key is an error, a run cannot change its own recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _pair(value: Any) -> Any:
    """Read ``224`` as ``(224, 224)``."""
    return (value, value) if isinstance(value, int) else value


def _several(value: Any) -> Any:
    """Read one name as a list of one."""
    return (value,) if isinstance(value, str) else () if value is None else value


Side = Annotated[int, Field(ge=1)]
Spread = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class ModelConfig(_Part):
    """Which network, by its registered name, and what differs from its published form."""

    name: str = Field(description="a registered network; auto is the one the weights are of")
    weights: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (), description="what to start from: files of one format, a bundle, hf:OWNER/NAME, torchvision:..."
    )
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
    resize: Literal["squash", "crop", "pad"] | None = Field(
        None,
        description="scale both sides, or keep proportions and cut or pad; suited to the data when absent",
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="both are antialiased; the weights' own or bilinear when absent"
    )
    crop_fraction: float | None = Field(None, gt=0, le=1, description="of crop; suited when absent")
    statistics: Literal["data", "imagenet", "none", "weights"] = Field(
        "data",
        description="mean and deviation: measured on train, ImageNet's, 0 and 1, or the weights' own",
    )
    mean: tuple[float, ...] | None = Field(
        None, description="per channel, of pixels in [0, 1]; given, statistics is not looked at"
    )
    std: tuple[Spread, ...] | None = Field(None, description="goes with mean")

    @model_validator(mode="after")
    def _consistent(self) -> PreprocessConfig:
        if len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std go together, a number for each channel")
        return self


class OptimizerConfig(_Part):
    """The optimiser; weight decay never touches biases and norms."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd and muon only")
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
    anneal: Literal["cosine", "linear"] = Field("cosine", description="onecycle: how it falls")


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


class TransferConfig(_Part):
    """What of a network that has learned already learns on, and how fast."""

    trained: Literal["all", "head"] | Annotated[int, Field(ge=0)] = Field(
        "all",
        description="all, head (on features kept), or the head and that many segments below it",
    )
    unfreeze_epochs: float | None = Field(
        None, gt=0, description="one more segment learns every so many epochs; starts with what trained says"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="the learning rate of a segment as a factor of that of the one above it"
    )
    frozen_norms: bool = Field(False, description="batch norms keep their statistics, scales and shifts")
    views: int = Field(1, ge=1, description="head: augmented versions of each image whose features are kept")
    on_device_blocks: int | None = Field(
        None, ge=1, description="only the last so many inverted residuals learn, with little memory"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TransferConfig:
        if self.trained == "all" and self.unfreeze_epochs:
            raise ValueError("unfreeze_epochs needs something frozen: set trained to a number of segments")
        if self.trained == "head" and (self.unfreeze_epochs or self.on_device_blocks):
            raise ValueError(
                "trained: head keeps features instead of running the layers below; with unfreeze_epochs"
                " or on_device_blocks set trained to a number of segments or to all"
            )
        return self

    @property
    def rests(self) -> bool:
        """Whether some layers do not learn in some epoch."""
        return self.trained != "all" or self.frozen_norms or self.on_device_blocks is not None


class RuntimeConfig(_Part):
    """Device, precision and memory layout; ``auto`` means measured on the first batch."""

    device: Literal["auto", "cpu"] = Field("auto", description="auto takes an accelerator where there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    layout: Literal["auto", "nchw", "channels_last"] = "auto"
    compile: bool = False
    threads: int | None = Field(None, ge=1)


class TaskConfig(_Part):
    """Which question, by its registered name, and what is particular to it."""

    name: str = "classify"
    arguments: dict[str, Any] = Field(default_factory=dict, description="see the task")


def _named(value: Any) -> Any:
    """Read a name alone as a part that has one."""
    return {"name": value} if isinstance(value, str) else value


class Recipe(_Part):
    """One training run. See the packaged ``recipes/*.yaml`` for examples."""

    name: str
    description: str = ""
    source: str = Field("", description="the paper or page the settings come from")
    task: Annotated[TaskConfig, BeforeValidator(_named)] = TaskConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: Augment = Augment()
    transfer: TransferConfig = TransferConfig()
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    optimize: Literal["latency", "throughput", "memory", "size"] | None = Field(
        None, description="find the fastest way to run the bundle, once it is trained"
    )
