"""What a recipe may say of data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DataConfig"]


class DataConfig(BaseModel):
    """Where the examples are and how they are fed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    path: str | None = Field(None, description="file, folder or Hub name; the embedded digits when absent")
    test: str | None = Field(None, description="another place, all of which is held out; not for classify")
    image_column: str | None = None
    recording_column: str | None = None
    text_column: str | None = None
    columns: tuple[str, ...] | None = Field(
        None, description="of a table, what is known of a row; all but the label when absent"
    )
    leave_out: tuple[str, ...] = Field((), description="of a table, columns not to learn from")
    label_column: str | None = None
    on_corrupt: Literal["refuse", "skip"] = "refuse"
    holdout: float = Field(0.2, gt=0, lt=1, description="share held out when the data has one split only")
    draw: Literal["random", "last"] = Field(
        "random", description="what is held out; last by name is not for classify"
    )
    validation: float = Field(0.0, ge=0, lt=1, description="share of train set aside to choose epochs by")
    loading: Literal["auto", "memory", "stream"] = "auto"
    workers: int | None = Field(
        None, ge=0, description="loader processes; chosen from the machine when absent"
    )

    def column_of(self, what: str) -> str | tuple[str, ...] | None:
        """Return the column that holds the examples, an ``image`` or something else, where it is said."""
        known = {
            "image": self.image_column,
            "recording": self.recording_column,
            "text": self.text_column,
            "row": self.columns,
        }
        return known.get(what)
