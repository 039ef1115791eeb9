"""Messages a user reads."""

from __future__ import annotations

import inspect

import pytest

from reskit import errors
from reskit.errors import MissingExtraError, ReskitError, UnknownNameError, did_you_mean


@pytest.mark.parametrize(
    ("word", "known", "ending"),
    [
        ("epoch", ["epochs", "seed"], "; did you mean 'epochs'?"),
        ("a1", ["a2", "a3"], "; known: a2, a3"),
        ("resnet20", ["resnet20b", "resnet32", "plain"], "; did you mean 'resnet20b' or 'resnet32'?"),
        ("zzz", ["b", "a"], "; known: a, b"),
        ("zzz", [], "; none is known"),
        ("", ["a"], "; known: a"),
        (
            "zzz",
            [f"k{i:02d}" for i in range(13)],
            "; known: " + ", ".join(f"k{i:02d}" for i in range(12)) + ", ...",
        ),
    ],
)
def test_the_nearest_words_or_all_of_a_few(word: str, known: list[str], ending: str) -> None:
    assert did_you_mean(word, iter(known)) == ending


def test_three_suggestions_at_most() -> None:
    assert did_you_mean("resnet", [f"resnet{i}" for i in range(9)]).count("resnet") == 3


def test_every_error_is_a_reskit_error_and_says_what_it_is() -> None:
    kinds = [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
    ]
    assert all(issubclass(kind, ReskitError) and kind.__doc__ for kind in kinds)
    assert sorted(kind.__name__ for kind in kinds) == sorted(set(errors.__all__) - {"did_you_mean"})


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert str(MissingExtraError("onnx", "onnx")) == "onnx is not installed: run `pip install 'reskit[onnx]'`"


def test_an_unknown_name_takes_any_iterable() -> None:
    assert str(UnknownNameError("model", "a", {"ab": 1})) == "unknown model 'a'; did you mean 'ab'?"
