"""`import reskit` and `reskit --help` cost nothing heavy; predicting imports only what predicting needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import reskit

HEAVY = ["torch", "torchvision", "numpy", "datasets", "accelerate", "torchmetrics", "sklearn", "matplotlib"]


def python(code: str, *arguments: str) -> list[str]:
    """Run code in a fresh interpreter; return which heavy modules it left behind."""
    ending = f"\nimport json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code + ending, *arguments], capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert python("import reskit; reskit.__version__; dir(reskit)") == []


def test_reading_recipes_imports_nothing_heavy() -> None:
    assert python("import reskit; [reskit.load_recipe(name) for name in reskit.list_recipes()]") == []


def test_help_and_recipes_import_nothing_heavy() -> None:
    code = "import sys\nfrom reskit.cli import main\ntry: main()\nexcept SystemExit: pass"
    before = os.times()
    assert python(code, "--help") == []
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 2  # seconds of processor; a wall clock would tell of the machine's other work
    assert python(code, "recipes", "--json") == []
    assert python(code, "recipes", "nonsense") == []


def test_predicting_imports_neither_metrics_nor_plots() -> None:
    found = python("import reskit.prediction")
    assert "torch" in found
    assert not {"torchmetrics", "sklearn", "matplotlib", "datasets", "accelerate"} & set(found)


@pytest.mark.parametrize("name", reskit.__all__)
def test_every_public_name_is_there_and_is_not_a_module(name: str) -> None:
    value = getattr(reskit, name)
    assert value is getattr(reskit, name)
    assert type(value).__name__ != "module"
    if callable(value):
        assert value.__doc__


def test_public_names_stay_callable_when_their_homes_are_imported() -> None:
    """A module of the same name as a function must not take its place."""
    import reskit.evaluation
    import reskit.prediction
    import reskit.training

    assert all(callable(getattr(reskit, name)) for name in reskit.__all__ if name != "__version__")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'reskit' has no attribute 'nonsense'"):
        reskit.nonsense  # noqa: B018
    assert dir(reskit) == sorted(reskit.__all__)


def test_the_package_says_it_is_typed() -> None:
    assert (Path(reskit.__file__).parent / "py.typed").is_file()
