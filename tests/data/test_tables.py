"""Rows of tables: which columns are of what, and how a row becomes numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reskit.data import open_source
from reskit.data.table_sources import ROWS, RowSplit
from reskit.data.tables import TablePreprocess
from reskit.errors import ConfigError, DataError

COLUMNS: dict[str, list[Any]] = {
    "amount": ["10", "20", "30", "40", "1000"],
    "age": [1.0, None, 3.0, 4.0, 5.0],
    "country": ["fr", "de", "fr", "", "it"],
    "code": [1, 1, 2, 3, 1],
}


def learned(**changes: Any) -> TablePreprocess:
    return TablePreprocess.learned({**COLUMNS, **changes}, categorical=["code"])


def test_columns_are_of_numbers_or_of_categories() -> None:
    preprocess = learned()
    assert preprocess.names == ["amount", "age", "country", "code"]
    assert [(one.middle, one.spread, one.gaps) for one in preprocess.numbers] == [
        (30.0, 20.0, False),
        (3.5, 1.75, True),
    ]
    assert [one.values for one in preprocess.categories] == [("fr", "de", "it"), ("1", "2", "3")]
    assert (preprocess.channels, preprocess.shape) == (3, (5,))
    assert TablePreprocess.model_validate_json(preprocess.model_dump_json()) == preprocess


@pytest.mark.parametrize(
    ("row", "raw"),
    [
        ({"amount": " 12.5 ", "age": "7", "country": "de", "code": 2}, [12.5, 7, 0, 2, 2]),
        ({"amount": 1, "age": None, "country": "xx", "code": 2.0}, [1, 3.5, 1, 0, 2]),
        ({"amount": "NA", "age": math.nan, "country": None, "code": "", "more": 1}, [30, 3.5, 1, 0, 0]),
        ({"amount": True, "age": np.float32(2), "country": " fr", "code": "3"}, [1, 2, 0, 1, 3]),
    ],
)
def test_a_row_is_read(row: dict[str, Any], raw: list[float]) -> None:
    found = learned().read(row)
    assert (found.dtype, found.tolist()) == (torch.float32, raw)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"amount": 1, "age": 2}, r"no column 'country' \(and 1 more\); the columns needed are amount, age"),
        ({"amount": "much", "age": 1, "country": "fr", "code": 1}, "column 'amount' is 'much': a number"),
        ({"amount": "inf", "age": 1, "country": "fr", "code": 1}, "a number is needed"),
        ({"amount": 10**400, "age": 1, "country": "fr", "code": 1}, "a number is needed"),
        ({"amount": 1e39, "age": 1, "country": "fr", "code": 1}, "a number is needed"),
        ({"amount": [1], "age": 1, "country": "fr", "code": 1}, "a number is needed"),
        ([1, 2], "cannot read a row from list"),
    ],
)
def test_a_row_that_cannot_be_read(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        learned().read(row)


def test_numbers_are_scaled_as_the_paper_says() -> None:
    preprocess = learned()
    raw = torch.tensor([[50.0, 3.5, 1, 2, 3], [-1e30, 5.0, 0, 9, -4]])
    found = preprocess.normalize()(raw)
    z, y = (50 - 30) / 20, (5 - 3.5) / 1.75
    assert found[0].tolist() == pytest.approx([z / math.sqrt(1 + (z / 3) ** 2), 0, 1, 2, 3])
    assert found[1].tolist() == pytest.approx(
        [-3, y / math.sqrt(1 + (y / 3) ** 2), 0, 3, 0]
    )  # codes are kept within
    with pytest.raises(DataError, match="float"):
        preprocess.normalize()(torch.zeros(1, 4))


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=2, max_size=2))
def test_any_finite_row_gives_finite_input(numbers: list[float]) -> None:
    raw = torch.tensor([[*numbers, 0, 0, 0]], dtype=torch.float32)
    assert learned().normalize()(raw).abs().max() <= 3.01


def test_half_and_bf16_count_every_category() -> None:
    codes = torch.arange(256, dtype=torch.float32)  # as many as a column may have, and the place for others
    assert torch.equal(codes.bfloat16().float(), codes)
    values = [f"v{i % 400}" for i in range(2000)]
    column = TablePreprocess.learned({"c": values, "n": [1.0] * 2000}).categories[0]
    assert len(column.values) == 255


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"name": [f"person {i}" for i in range(60)]}, "60 different values in 60 rows"),
        ({"empty": [None, "", "NA"]}, "column 'empty' is empty"),
    ],
)
def test_columns_that_say_nothing(columns: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        TablePreprocess.learned(columns)


def test_a_column_of_categories_must_be_there() -> None:
    with pytest.raises(ConfigError, match="no column 'codes'; did you mean 'code'"):
        TablePreprocess.learned(COLUMNS, categorical=["codes"])


def test_a_constant_column_does_no_harm() -> None:
    preprocess = TablePreprocess.learned({"a": [5, 5, 5], "b": [1, 2, 3]})
    assert preprocess.normalize()(torch.tensor([[5.0, 2.0]])).tolist() == [[0, 0]]


# Places.


def test_parquet_of_rows(tmp_path: Path) -> None:
    table = {"path": ["x"] * 6, "bytes": list(range(6)), "y": [0, 1] * 3, "split": ["train"] * 6}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    source = open_source(tmp_path / "rows.parquet", examples=ROWS)
    assert source.describe().columns == {"row": "path, bytes", "label": "y"}
    split = source["train"]
    assert isinstance(split, RowSplit)
    assert split.item(0) == {"path": "x", "bytes": 0}  # no file is meant
    assert set(split.columns()) == {"path", "bytes"}
    assert len(split.columns()["bytes"]) == len(split)


def test_columns_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,c,label\n1,2,3,x\n4,5,6,y\n7,8,9,x\n1,1,1,y\n")
    source = open_source(tmp_path / "rows.csv", examples=ROWS, column=("c", "a"))
    assert source["train"].item(0).keys() == {"c", "a"}
    with pytest.raises(DataError, match="no column 'd'"):
        open_source(tmp_path / "rows.csv", examples=ROWS, column=("d",))
    (tmp_path / "alone.csv").write_text("label\nx\ny\n")
    with pytest.raises(DataError, match="no column but the label"):
        open_source(tmp_path / "alone.csv", examples=ROWS)


def test_splits_must_have_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,label\n1,2,x\n4,5,y\n")
    (tmp_path / "test.csv").write_text("a,label\n1,x\n4,y\n")
    with pytest.raises(DataError, match="has no column 'b'"):
        open_source(tmp_path, examples=ROWS)


def test_the_fingerprint_is_of_every_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,label\n1,x\n4,y\n1,x\n2,y\n")
    (tmp_path / "b.csv").write_text("a,label\n1,x\n4,y\n1,x\n3,y\n")
    first, second = (open_source(tmp_path / f"{name}.csv", examples=ROWS).fingerprint for name in "ab")
    assert first != second
