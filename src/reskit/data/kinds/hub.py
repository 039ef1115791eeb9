"""Data sets of the Hugging Face Hub, by name."""

from __future__ import annotations

import re
from pathlib import Path

import datasets

from reskit.data.kinds.arrow import named_splits
from reskit.data.kinds.base import SOURCES, Found, SourceKind, first_line, quiet
from reskit.errors import DataError

__all__ = ["open_hub"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_hub(location: str, cache_dir: Path | None, suffixes: frozenset[str]) -> Found:
    """Download (or take from the cache) a data set of the Hub.

    Raises:
        DataError: the Hub cannot be reached, or has no such data set.
    """
    with quiet():
        try:
            opened = datasets.load_dataset(location, cache_dir=str(cache_dir) if cache_dir else None)
        # The Hub client raises OSError, ValueError and RuntimeError children for network and names alike.
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{location!r} is no file or folder here, and the Hugging Face Hub did not give it as a data "
                f"set ({first_line(error)}): check the name, or the network and HF_HUB_OFFLINE"
            ) from error
    return Found(*named_splits(opened))


SOURCES.add(
    "hub",
    SourceKind(
        title="Hugging Face Hub",
        looks_like="a name owner/name on the Hugging Face Hub",
        order=95,
        matches=lambda location: bool(_NAME.fullmatch(location)) and not Path(location).exists(),
        open=open_hub,
    ),
)
