"""What differs between tasks, and nothing else: data, head, loss, metrics, decoding."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess, Preprocess
from reskit.data.augment import Augment
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError, MissingExtraError, did_you_mean
from reskit.inputs import Found, find_images
from reskit.models import Backbone
from reskit.registry import Registry

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchmetrics import MetricCollection

    from reskit.data import Source, Split
    from reskit.data.loading import Mode

__all__ = [
    "TASKS",
    "Answered",
    "Batch",
    "Drop",
    "Feeding",
    "Network",
    "Task",
    "TaskSettings",
    "refuse_changed",
    "shown_of",
]

Batch = Mapping[str, Tensor]
Network = Callable[[Tensor], Tensor]
"""Raw input, such as pixels `(N, C, H, W)`, as an engine takes it, to the network's outputs."""


class TaskSettings(BaseModel):
    """What a recipe may say of one task, under ``task.arguments``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Feeding(NamedTuple):
    """How batches of a split are made.

    Attributes:
        batch_size: examples at once.
        mode: whether examples are kept in memory or read again.
        augment: variation of the examples; None for evaluation, which also goes in order.
        shuffle: a new order every epoch.
        seed: of order and augmentation.
        workers: loader processes; chosen when absent.
        pin_memory: for copies to a GPU.
    """

    batch_size: int
    mode: Mode = "memory"
    augment: Augment | None = None
    shuffle: bool = False
    seed: int = 0
    workers: int | None = None
    pin_memory: bool = False

    def of_examples(self) -> dict[str, Any]:
        """Return the arguments of `example_loader`; what is in memory needs no workers."""
        workers = 0 if self.mode == "memory" else self.workers or 0
        taken = {name: getattr(self, name) for name in ("batch_size", "shuffle", "seed", "pin_memory")}
        return {**taken, "workers": workers}


class Drop(NamedTuple):
    """What an engine may lose of a task's main metric.

    Attributes:
        most: so many units.
        size: what one of them is of the metric.
        unit: their name.
    """

    most: float
    size: float
    unit: str


class Answered(NamedTuple):
    """One example of an evaluation: what went in and what came out, each with a batch of one."""

    batch: Batch
    outputs: Tensor


class Task(ABC):
    """One kind of question a network answers.

    A task is made from a recipe and what was found in the data (`from_recipe`), or from a bundle
    (`from_config`); both read, score and decode alike, so training and serving cannot disagree. It
    knows nothing of devices, loops or engines.

    Args:
        preprocess: how a raw example becomes the network's input.
        labels: class names, in the order of the network's outputs; empty where there are none.
        settings: what the recipe says of the task.
    """

    name: ClassVar[str]
    main_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    meanings: ClassVar[Mapping[str, str]] = {}
    """What each metric means, in the order they are shown, the main one first."""
    weakest_by: ClassVar[str] = "f1"
    """The column of the table of classes that tells weak ones."""
    drop: ClassVar[Drop] = Drop(0.5, 0.01, "points")
    """What an engine may lose of the main metric, unless a user says otherwise."""
    raw: ClassVar[str] = "image"
    """Name of the raw input, in a batch and in the graph that every engine runs."""
    dtype: ClassVar[Literal["uint8", "int32", "float32"]] = "uint8"
    """What raw input comes as; pixels are from 0 to 255 in either."""
    explains: ClassVar[bool] = False
    """Whether places of an example, such as those of an image, speak for an answer."""
    one_class: ClassVar[bool] = False
    """Whether an answer is one class, that of the largest output."""
    statistics: ClassVar[Literal["none"] | None] = None
    """How pixels are always scaled, whatever a recipe says of ``preprocess.statistics``."""
    takes: ClassVar[Literal["image", "audio", "text", "table"]] = "image"
    """What people give it to be answered."""
    for_instance: ClassVar[Any] = "photo.png"
    """Something it could be given, for a model card."""
    Input: ClassVar[type[Preprocess]] = ImagePreprocess
    """How what they give becomes raw input."""
    pipeline_tag: ClassVar[str]
    """The Hugging Face Hub's name of the task."""
    streams: ClassVar[bool] = True
    """Whether examples may be read again and again, instead of kept in memory."""
    needs: ClassVar[Mapping[str, str]] = {}
    """Modules that reading examples needs besides the core's, and the extra that brings each."""
    Settings: ClassVar[type[TaskSettings]] = TaskSettings

    def __init__(
        self, *, preprocess: Any, labels: Sequence[str] = (), settings: TaskSettings | None = None
    ) -> None:
        self.preprocess: Preprocess = preprocess
        self.labels = list(labels)
        self.settings = settings or self.Settings()
        self.normalize = preprocess.normalize()

    @classmethod
    def from_recipe(cls, recipe: Recipe, info: DataInfo, preprocess: Any) -> Self:
        """Make the task a recipe asks for on the data at hand."""
        return cls(preprocess=preprocess, labels=info.classes, settings=cls.read_settings(recipe))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make the task again from what `config` returned."""
        return cls(
            preprocess=cls.Input.model_validate(config["preprocess"]),
            labels=config["labels"],
            settings=cls.Settings.model_validate(config.get("settings", {})),
        )

    def config(self) -> dict[str, Any]:
        """Return what a bundle stores: JSON values only, enough for `from_config`."""
        return {
            "name": self.name,
            "labels": self.labels,
            "preprocess": self.preprocess.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
        }

    @classmethod
    def read_settings(cls, recipe: Recipe) -> Any:
        """Return the settings under ``task.arguments`` of a recipe, an instance of `Settings`.

        Raises:
            ConfigError: a key is unknown or a value out of range.
        """
        return cls.settings_of(recipe.task.arguments)

    @classmethod
    def settings_of(cls, arguments: Mapping[str, Any]) -> Any:
        """Return settings, an instance of `Settings`; errors as `read_settings`."""
        known = cls.Settings.model_fields
        for key in arguments:
            if key not in known:
                raise ConfigError(f"task {cls.name!r} has no argument {key!r}{did_you_mean(key, known)}")
        try:
            return cls.Settings.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("task.arguments", *first["loc"])))
            raise ConfigError(f"{where}: {first['msg']}") from None

    @classmethod
    def settled(cls, settings: Any, model: Backbone) -> Any:
        """Return settings with what the network has to say of them: nothing, unless a task needs it.

        Raises:
            ConfigError: the network cannot do this task.
        """
        return settings

    @classmethod
    def check_installed(cls) -> None:
        """Check that what reads examples is there.

        Raises:
            MissingExtraError: naming the extra that brings it.
        """
        for module, extra in cls.needs.items():
            if importlib.util.find_spec(module) is None:
                raise MissingExtraError(module, extra)

    # Data.

    @classmethod
    @abstractmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """Open the data a recipe names.

        Raises:
            DataError: they cannot be read, or are not of this task's kind.
        """

    @classmethod
    def geometry(cls, recipe: Recipe, info: DataInfo, train: Split) -> Preprocess:
        """Return how an example becomes input, what the recipe leaves open suited to the data.

        Args:
            recipe: what is asked for.
            info: what was found.
            train: what may be learnt from, such as words.

        Raises:
            ConfigError: the recipe asks for what this task has not.
        """
        asked = recipe.preprocess
        suited = ImagePreprocess.from_info(
            info, size=asked.size, interpolation=asked.interpolation or "bilinear"
        )
        said = {"resize": asked.resize, "crop_fraction": asked.crop_fraction}
        return suited.model_copy(update={name: value for name, value in said.items() if value is not None})

    def check(self, source: Source) -> None:
        """Refuse data of other classes.

        Raises:
            DataError: naming both.
        """
        if source.classes != self.labels:
            raise DataError(
                f"{source.location} has the classes {_shown(source.classes)},"
                f" the bundle was trained on {_shown(self.labels)}"
            )

    @abstractmethod
    def loader(self, split: Split, feeding: Feeding) -> DataLoader[Any]:
        """Return batches of a split: raw input by its name, `index` (row numbers), and the targets.

        Raises:
            DataError: an example cannot be read, and the split refuses that.
            ConfigError: what is asked for does not go together.
        """

    def stored(self, info: DataInfo) -> Preprocess:
        """Return how examples are kept in memory; as the network's input unless overridden."""
        return self.preprocess

    def find(self, inputs: Any, recursive: bool) -> Iterator[Found]:
        """Yield every example that is named by or held in what a user gives, in order; see `reskit.predict`.

        Raises:
            DataError: there is not one.
        """
        return find_images(inputs, self.preprocess.channels, recursive)

    def read(self, item: Any) -> Tensor:
        """Read an example to be answered, an image as `(C, h, w)`; errors of `Preprocess.read`."""
        return self.preprocess.read(item)

    def sample(self, item: Any) -> Tensor:
        """Return the raw input that the network would be given of an example, of `preprocess.shape`."""
        return self.read(item)

    # Training.

    @classmethod
    def architecture(cls, settings: Any) -> dict[str, Any]:
        """Return what settings decide of a network, besides its channels and classes."""
        return {}

    @abstractmethod
    def build_model(self, recipe: Recipe) -> Backbone:
        """Return the recipe's network, its weights random, with the head this task needs."""

    def inputs(self, batch: Batch) -> Tensor:
        """Return the network's input of raw input, such as pixels `(N, C, H, W)` to normalised float.

        A batch of features, kept from a network that rests, goes to the head as it is.
        """
        if "features" in batch:
            return batch["features"]
        normalized: Tensor = self.normalize(batch[self.raw])
        return normalized

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """Return what the network's output is held against."""

    def mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Combine the examples of a training batch (mixup, cutmix); the identity unless overridden."""
        return inputs, target

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the scalar that training lowers; `target` may come from `mix`."""

    # Evaluation.

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """Return the outputs for raw input as the loader gives it; the network's own unless overridden."""
        return network(images)

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Return fresh scalar metrics, updated with `(outputs, target)`; they must not sync by themselves."""

    @abstractmethod
    def examples(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return one row an example as columns `(N,)`: what it was, what was said, how wrong that is.

        Columns `(N, ...)` may hold what `analyse` needs besides, such as boxes; they are not written down.
        """

    @abstractmethod
    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the tables of an evaluation from its rows; JSON values only."""

    @abstractmethod
    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        answered: Callable[[int], Answered],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw an evaluation into PNG files and return them by name.

        `answered(i)` is row `i` of the examples, read and answered again.
        """

    def agreement(self, outputs: Tensor) -> Batch:
        """Return targets that say the network's own outputs, to guard engines by where no truth is known.

        Raises:
            DataError: this task cannot do without.
        """
        raise DataError(f"the task {self.name} is guarded by examples with a truth: give --data")

    # Prediction.

    blank: ClassVar[Mapping[str, Any]]
    """The record of an example that could not be answered."""

    @abstractmethod
    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return one record an example that a person can read, with the keys of `blank`."""

    def pictures(self, image: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray | Image.Image]:
        """Return what is worth saving as a picture of one answer, uint8 `(H, W)` or `(H, W, 3)`, by name.

        A PIL image is saved as it is, with its palette.

        Args:
            image: as `read` gave it, `(C, h, w)`.
            outputs: of a batch of this one.
        """
        return {}

    @abstractmethod
    def words(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return a record as the cells of a table for people, the most important first."""

    @abstractmethod
    def columns(self) -> list[pa.Field]:
        """Return the pyarrow fields of a record."""


TASKS: Registry[type[Task]] = Registry("task")


def refuse_changed(settings: BaseModel, names: Iterable[str], where: str, why: str) -> None:
    """Refuse settings that are not as they are by default.

    Raises:
        ConfigError: naming the first, and why it is of no use.
    """
    for name in names:
        if getattr(settings, name) != type(settings).model_fields[name].default:
            raise ConfigError(f"{where}.{name} {why}")


def shown_of(order: np.ndarray, count: int = 4) -> list[int]:
    """Return so many of the rows `(n,)` in an order, from its first to its last, evenly spread."""
    places = sorted({round(part * (len(order) - 1)) for part in np.linspace(0, 1, count)})
    return [int(order[place]) for place in places]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
