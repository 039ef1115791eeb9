"""From what a user holds to what a network is given: the part of a model that is not weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

__all__ = ["Preprocess", "Statistics"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, a number a channel each."""


class Preprocess(BaseModel, ABC):
    """Everything needed to turn one example into raw input, and raw input into a network's; nothing else.

    It is stored in a bundle as JSON. What `read` does happens outside a network's file, what `normalize`
    does inside, so that whoever runs the file cannot scale otherwise than training did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the raw input of one example."""

    @abstractmethod
    def read(self, item: Any) -> Tensor:
        """Return the raw input of an example, of `shape`.

        Raises:
            DataError: it cannot be read; says why.
        """

    @abstractmethod
    def normalize(self) -> nn.Module:
        """Return the module that makes a network's input of raw input `(N, *shape)`."""

    @abstractmethod
    def describe(self) -> str:
        """Return what the raw input is, for people."""

    def measured(self, measure: Callable[[], Statistics]) -> Self:
        """Return the same with the mean and deviation that `measure` finds in the data, where it has any."""
        return self
