"""What a run is asked to do, settled before anything is opened or written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from reskit.config import Recipe
from reskit.errors import ConfigError
from reskit.models import MODELS
from reskit.recipes import load_recipe
from reskit.tasks import TASKS
from reskit.training.transfer import settle_weights

__all__ = ["settle"]


def settle(
    recipe: str | Path | Mapping[str, Any] | None,
    *,
    data: str | Path | None,
    weights: Sequence[str | Path],
    out: str | Path | None,
    overrides: Iterable[str],
    resume: bool,
) -> tuple[Recipe, Path]:
    """Return the whole recipe and the run's folder, after checking that nothing will be overwritten.

    Whatever the recipe leaves to the weights is filled in, so that a run needs them only to begin.

    Raises:
        ReskitError: a name, a key, a weights file or the folder is not usable.
    """
    written = Path(out) / "recipe.yaml" if out is not None else None
    if resume:
        if written is None:
            raise ConfigError("resuming needs the run's folder: --out DIR --resume")
        if written.is_file():
            begun = load_recipe(written)
            if recipe is not None and (asked := _asked(recipe, data, weights, overrides)) != begun:
                raise ConfigError(
                    f"{written} differs from what is asked in {_differences(begun, asked)}; resume without it"
                )
            if recipe is None and (data is not None or weights or list(overrides)):
                raise ConfigError(
                    "a run is resumed as it was begun: leave out --set, --data and --weights,"
                    " or start another --out"
                )
            return begun, written.parent
    if recipe is None:
        missing = f"nothing to resume in {out}: no recipe.yaml there"
        raise ConfigError(missing if resume else "name a recipe; see `reskit recipes`")
    settled = _asked(recipe, data, weights, overrides)
    folder = Path(out) if out is not None else Path("runs") / f"{settled.name}-{datetime.now():%Y%m%d-%H%M%S}"
    first = os.environ.get("RANK", "0") == "0"  # of several processes: the others may find its files
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; choose another --out")
    if first and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty; add --resume to go on with that run, or choose another --out"
        )
    return settled, folder


def _asked(
    recipe: str | Path | Mapping[str, Any],
    data: str | Path | None,
    weights: Sequence[str | Path],
    overrides: Iterable[str],
) -> Recipe:
    """Return the whole recipe a user asks for."""
    asked = load_recipe(recipe, overrides)
    if data is not None:
        asked = asked.model_copy(update={"data": asked.data.model_copy(update={"path": str(data)})})
    if weights:
        named = asked.model.model_copy(update={"weights": tuple(map(str, weights))})
        asked = asked.model_copy(update={"model": named})
    TASKS.get(asked.task.name).read_settings(asked)
    asked = settle_weights(asked)
    MODELS.get(asked.model.name)
    return asked


def _differences(first: Recipe, second: Recipe) -> str:
    """Return the top-level keys in which two recipes differ."""
    one, two = first.model_dump(), second.model_dump()
    return ", ".join(key for key in one if one[key] != two[key])
