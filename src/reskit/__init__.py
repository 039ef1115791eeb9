"""Residual networks from labelled data to a monitored service: measured, not guessed.

The public names below are imported on first use, so that ``import reskit`` stays instant:

- `create_model`, `list_models`: networks by name
- `train`: a recipe and data to a bundle
- `load`: a bundle; `evaluate` and `predict` with one
- `import_model`, `import_bundle`, `export`: published weights in, files that run elsewhere out
- `serve`: bundles as a service, REST and gRPC
- `optimize`: the fastest way to run a bundle here, measured; `bench`: beside its peers
- `lesion_study`, `prune`: what each residual block is worth, and a network without the cheapest
- `compare`: runs side by side
- `load_recipe`, `list_recipes`: recipes
- `open_source`: data behind one door
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from reskit.benchmarking import bench
    from reskit.bundle import Bundle, load
    from reskit.config import Recipe
    from reskit.data import open_source
    from reskit.errors import ReskitError
    from reskit.evaluation import compare, evaluate
    from reskit.exporting import export
    from reskit.importing import import_bundle, import_model
    from reskit.insight import lesion_study, prune
    from reskit.models import create_model, list_models
    from reskit.optimization import optimize
    from reskit.prediction import predict
    from reskit.recipes import list_recipes, load_recipe
    from reskit.serving import serve
    from reskit.training import train

_HOMES = {
    "Bundle": "reskit.bundle",
    "Recipe": "reskit.config",
    "ReskitError": "reskit.errors",
    "bench": "reskit.benchmarking",
    "compare": "reskit.evaluation",
    "create_model": "reskit.models",
    "evaluate": "reskit.evaluation",
    "export": "reskit.exporting",
    "import_bundle": "reskit.importing",
    "import_model": "reskit.importing",
    "lesion_study": "reskit.insight",
    "list_models": "reskit.models",
    "list_recipes": "reskit.recipes",
    "load": "reskit.bundle",
    "load_recipe": "reskit.recipes",
    "open_source": "reskit.data",
    "optimize": "reskit.optimization",
    "predict": "reskit.prediction",
    "prune": "reskit.insight",
    "serve": "reskit.serving",
    "train": "reskit.training",
}

__all__ = [  # noqa: RUF022 - the order of use
    "create_model",
    "list_models",
    "open_source",
    "load_recipe",
    "list_recipes",
    "train",
    "compare",
    "load",
    "import_bundle",
    "import_model",
    "export",
    "optimize",
    "bench",
    "lesion_study",
    "prune",
    "evaluate",
    "predict",
    "serve",
    "Bundle",
    "Recipe",
    "ReskitError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reskit' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
