"""Named things: models, tasks, sources, backends. One small class for all of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from reskit.errors import UnknownNameError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to things of one kind.

    Args:
        kind: what is registered, in the singular; it appears in error messages.

    Example:
        >>> shapes = Registry[type]("shape")
        >>> @shapes.register("square")
        ... class Square: ...
        >>> shapes.get("square") is Square
        True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._unlisted: dict[str, T] = {}

    def add(self, name: str, item: T, *, listed: bool = True) -> T:
        """Register `item` under `name`; a name taken already is a programming error.

        What is not listed is there for those who know its name: :meth:`get` finds it, nothing else does.
        """
        if name in self._items or name in self._unlisted:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        (self._items if listed else self._unlisted)[name] = item
        return item

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under `name`."""
        return lambda item: self.add(name, item)

    def get(self, name: str) -> T:
        """Return what is registered under `name`.

        Raises:
            UnknownNameError: nothing is; the message names the nearest known names.
        """
        try:
            return self._unlisted[name] if name in self._unlisted else self._items[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._items) from None

    def names(self, pattern: str = "*") -> list[str]:
        """Return the sorted names that match a shell-style `pattern`."""
        return sorted(fnmatch.filter(self._items, pattern))

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._items)
