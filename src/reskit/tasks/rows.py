"""What tasks share whose examples are small: one label each, all of them in memory."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from reskit.config import PreprocessConfig, Recipe
from reskit.data import Preprocess
from reskit.data.augment import Augment
from reskit.data.config import DataConfig
from reskit.errors import ConfigError
from reskit.tasks.base import Feeding, refuse_changed
from reskit.tasks.labelled import Labelled
from reskit.weights import read_checkpoint

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from reskit.data import Source, Split
    from reskit.data.column import Column

__all__ = ["Rows", "kept_preprocess"]

_Kept = TypeVar("_Kept", bound=Preprocess)


class Rows(Labelled):
    """One class an example, of which a whole split is one tensor."""

    streams = False

    @classmethod
    @abstractmethod
    def column(cls) -> Column:
        """Return what the examples are of."""

    @classmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """See `Task.open`."""
        from reskit.data.sources import open_labelled

        if data.loading == "stream":
            raise ConfigError(f"data.loading: {cls.column().what}s are kept in memory; leave it out")
        return open_labelled(data, seed=seed, examples=cls.column())

    @classmethod
    def refuse_pictures(cls, recipe: Recipe) -> None:
        """Refuse what a recipe says of images.

        Raises:
            ConfigError: naming it.
        """
        why = f"is for images; the task {cls.name} has settings of its own, under task.arguments"
        refuse_changed(recipe.augment, Augment.model_fields, "augment", why)
        refuse_changed(recipe.preprocess, PreprocessConfig.model_fields, "preprocess", why)

    def loader(self, split: Split, feeding: Feeding) -> DataLoader[Any]:
        """See `Task.loader`."""
        from reskit.data.rows import row_loader

        return row_loader(
            split,
            name=self.raw,
            preprocess=self.preprocess,
            batch_size=feeding.batch_size,
            shuffle=feeding.shuffle,
            seed=feeding.seed,
            pin_memory=feeding.pin_memory,
            drop_last=feeding.augment is not None,
        )


def kept_preprocess(kind: type[_Kept], recipe: Recipe) -> _Kept | None:
    """Return how the bundle reads examples that a run starts from, None where it starts from nothing.

    What a network knows of words and columns is of use with the same places for them only.

    Raises:
        ConfigError: the weights are those of no bundle of this task.
        WeightsError: they cannot be read.
    """
    if not recipe.model.weights:
        return None
    checkpoint = read_checkpoint(*recipe.model.weights)
    try:
        return kind.model_validate(checkpoint.preprocess)
    except ValidationError:
        raise ConfigError(
            f"model.weights: {checkpoint.source} is no bundle of the task {recipe.task.name};"
            " weights that do not come with how they are given examples are of no use"
        ) from None
