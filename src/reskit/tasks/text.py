"""One label a text: sentiment, intent, topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from reskit.config import Recipe
from reskit.data import DataInfo
from reskit.data.texts import TextPreprocess
from reskit.inputs import Found
from reskit.inputs.texts import find_texts
from reskit.tasks.base import TASKS, TaskSettings
from reskit.tasks.rows import Rows, kept_preprocess

if TYPE_CHECKING:
    from reskit.data import Split
    from reskit.data.column import Column

__all__ = ["Text"]


class TextSettings(TaskSettings):
    """What a recipe may say of texts."""

    unit: Literal["word", "character"] = Field("word", description="of what a text is made")
    length: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="so many of them are looked at; as 99 % of the texts have when absent",
    )
    vocabulary: int = Field(
        20_000, ge=1, le=1_000_000, description="so many different ones, the most frequent"
    )
    least: int = Field(2, ge=1, description="times one must be in the training texts to be known")


@TASKS.register("text")
class Text(Rows):
    """One class a text, told of its words or characters; see `TextPreprocess`."""

    name = "text"
    takes = "text"
    made_for = "text"
    raw = "tokens"
    dtype = "int32"
    for_instance = "what people write"
    Input = TextPreprocess
    preprocess: TextPreprocess
    pipeline_tag = "text-classification"
    Settings = TextSettings
    settings: TextSettings

    @classmethod
    def column(cls) -> Column:
        """See `Rows.column`."""
        from reskit.data.text_sources import TEXTS

        return TEXTS

    @classmethod
    def geometry(cls, recipe: Recipe, info: DataInfo, train: Split) -> TextPreprocess:
        """Return the vocabulary of the training texts; see `Task.geometry`."""
        cls.refuse_pictures(recipe)
        asked = cls.read_settings(recipe)
        from reskit.data.text_sources import TextSplit

        assert isinstance(train, TextSplit)
        if (known := kept_preprocess(TextPreprocess, recipe)) is not None:
            return known
        return TextPreprocess.learned(
            train.texts(),
            unit=asked.unit,
            length=asked.length,
            most=asked.vocabulary,
            least=asked.least,
            column=None if train.names_files else train.column,
        )

    def find(self, inputs: Any, recursive: bool) -> Iterator[Found]:
        """See `Task.find`."""
        return find_texts(inputs, recursive, self.preprocess)
