"""How far two answers say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reskit.serving.deploying.comparing import disagreement, flaws
from reskit.serving.protocol import InferResponse, Output


def response(*arrays: Any, name: str = "output") -> InferResponse:
    outputs = [Output(name=name, array=np.asarray(array), binary=False) for array in arrays]
    return InferResponse(model="m", version="1", id="", outputs=outputs)


def rows(*found: dict[str, Any]) -> dict[str, Any]:
    return {"predictions": [{"error": None, **row} for row in found]}


CAT, DOG = [2.0, 1.0], [1.0, 2.0]
MASK = np.zeros((1, 2, 4, 4), np.float32)
CORNER = MASK.copy()
CORNER[0, 1, 0, 0] = 1


@pytest.mark.parametrize(
    ("old", "new", "classes", "expected"),
    [
        (response([CAT, DOG]), response([[9.0, 0.0], DOG]), 2, 0),
        (response([CAT, DOG, DOG, DOG]), response([DOG, DOG, DOG, DOG]), 2, 0.25),
        (response(MASK), response(CORNER), 2, 1 / 16),
        (response([["2.0:0:cat", "1.0:1:dog"]]), response([["1.9:0:cat", "1.8:1:dog"]]), 2, 0),
        (response([["2.0:0:cat", "1.0:1:dog"]]), response([["1.9:1:dog", "1.8:0:cat"]]), 2, 1),
        (response([[1.0, 2.0, 2.0]]), response([[1.0, 2.0, 2.2]]), 0, 0),
        (response([[1.0, 2.0, 2.0]]), response([[1.0, 2.0, 2.4]]), 0, 1),
        (response([[1.0]]), response([[np.nan]]), 0, 1),
        (response([CAT]), response([[1.0, 2.0, 3.0]]), 2, 1),
        (response([CAT]), response([CAT], name="logits"), 2, 1),
        (rows({"label": "cat", "top": []}), rows({"label": "cat", "top": [{"label": "dog"}]}), 2, 0),
        (rows({"label": "cat"}, {"label": "dog"}), rows({"label": "dog"}, {"label": "dog"}), 2, 0.5),
        (
            rows({"boxes": [{"label": "a", "score": 1.0}, {"label": "b", "score": 0.5}]}),
            rows({"boxes": [{"label": "b", "score": 0.9}, {"label": "a", "score": 0.8}]}),
            2,
            0,
        ),
        (rows({"boxes": [{"label": "a"}]}), rows({"boxes": []}), 2, 1),
    ],
)
def test_disagreement(old: Any, new: Any, classes: int, expected: float) -> None:
    assert disagreement(old, new, classes) == pytest.approx(expected)


def test_flaws() -> None:
    assert flaws(response([CAT])) == 0
    assert flaws(response([[np.inf, 0.0]], [CAT])) == 1
    assert flaws(response([["2.0:0:cat"]])) == 0
    assert flaws(rows({"label": "cat"}, {"error": "no image"})) == 1
