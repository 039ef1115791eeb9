"""One name, one thing; an unknown name brings the nearest."""

from __future__ import annotations

import pytest

from reskit.errors import UnknownNameError
from reskit.registry import Registry


@pytest.fixture
def shapes() -> Registry[int]:
    registry = Registry[int]("shape")
    for name, sides in {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}.items():
        registry.add(name, sides)
    return registry


def test_what_is_added_is_found(shapes: Registry[int]) -> None:
    assert shapes.get("square") == 4
    assert "square" in shapes
    assert "circle" not in shapes
    assert 4 not in shapes
    assert len(shapes) == 4


def test_names_are_sorted_and_globbed(shapes: Registry[int]) -> None:
    assert list(shapes) == shapes.names() == ["hexagon", "pentagon", "square", "triangle"]
    assert shapes.names("*gon") == ["hexagon", "pentagon"]
    assert shapes.names("[st]*") == ["square", "triangle"]
    assert shapes.names("*GON") == []
    assert shapes.names("circle") == []


def test_the_decorator_registers_and_returns_what_it_decorates() -> None:
    kinds = Registry[type]("kind")

    @kinds.register("one")
    class One:
        pass

    assert kinds.get("one") is One


def test_a_duplicate_is_refused_and_changes_nothing(shapes: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"shape 'square' is registered twice"):
        shapes.add("square", 44)
    with pytest.raises(ValueError, match="registered twice"):
        shapes.register("square")(44)
    assert shapes.get("square") == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sqare", "unknown shape 'sqare'; did you mean 'square'?"),
        ("hexagom", "unknown shape 'hexagom'; did you mean 'hexagon'?"),
        ("xyz", "unknown shape 'xyz'; known: hexagon, pentagon, square, triangle"),
    ],
)
def test_an_unknown_name_brings_the_nearest(shapes: Registry[int], name: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        shapes.get(name)
    assert str(caught.value) == message
    assert caught.value.__suppress_context__


def test_two_registries_share_nothing(shapes: Registry[int]) -> None:
    assert "square" not in Registry[int]("shape")
