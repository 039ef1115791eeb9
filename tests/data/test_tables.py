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
        ({"amount": " 12.5 ", "age": "7", "country": "de", "code": 2}, [-0.875, 2, 0, 2, 2]),
        ({"amount": 1, "age": None, "country": "xx", "code": 2.0}, [-1.45, 0, 1, 0, 2]),
        ({"amount": "NA", "age": math.nan, "country": None, "code": "", "more": 1}, [0, 0, 1, 0, 0]),
        (
            {"amount": np.int8(1), "age": np.float32(2), "country": " fr", "code": "3"},
            [-1.45, -1.5 / 1.75, 0, 1, 3],
        ),
    ],
)
def test_a_row_is_read(row: dict[str, Any], raw: list[float]) -> None:
    found = learned().read(row)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(raw)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"amount": 1, "age": 2}, r"no column 'country' \(and 1 more\); the columns needed are amount, age"),
        ({"amount": "much", "age": 1, "country": "fr", "code": 1}, "column 'amount' is 'much': a number"),
        ({"amount": "inf", "age": 1, "country": "fr", "code": 1}, "a number is needed"),
        ({"amount": 10**400, "age": 1, "country": "fr", "code": 1}, "a number is needed"),
        ({"amount": 1e39, "age": 1, "country": "fr", "code": 1}, "a number is needed"),
        ({"amount": True, "age": 1, "country": "fr", "code": 1}, "is True: a number is needed"),
        ({"amount": [1], "age": 1, "country": "fr", "code": 1}, "a number is needed"),
        ([1, 2], "cannot read a row from list"),
    ],
)
def test_a_row_that_cannot_be_read(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        learned().read(row)


def test_numbers_are_scaled_and_bent_as_the_paper_says() -> None:
    preprocess = learned()
    row = {"amount": 50, "age": 5, "country": "de", "code": 3}
    found = preprocess.normalize()(preprocess.read(row)[None])[0]
    z, y = (50 - 30) / 20, (5 - 3.5) / 1.75
    bent = [z / math.sqrt(1 + (z / 3) ** 2), y / math.sqrt(1 + (y / 3) ** 2)]
    assert found.tolist() == pytest.approx([*bent, 0, 2, 3])
    with pytest.raises(DataError, match="float"):
        preprocess.normalize()(torch.zeros(1, 4))


def test_dates_in_seconds_stay_apart() -> None:
    """As float32 they would all be one; their differences are not."""
    times = [1.7e9 + step for step in (0, 20, 50, 70, 100)]
    preprocess = TablePreprocess.learned({"time": times})
    assert len({float(preprocess.read({"time": time})[0]) for time in times}) == 5


@given(st.lists(st.floats(width=32), min_size=5, max_size=5))
def test_whatever_a_client_sends_is_within_range(numbers: list[float]) -> None:
    """Not a number stays so where a number stands, in the sender's own row; a category is one there is."""
    found = learned().normalize()(torch.tensor([numbers], dtype=torch.float32))[0]
    assert all(math.isnan(value) or abs(value) <= 3.01 for value in found[:2].tolist())
    assert 0 <= found[3] <= 3
    assert 0 <= found[4] <= 3


def test_a_mistake_among_numbers_is_named_and_makes_no_categories() -> None:
    ages: list[Any] = [str(age % 40) for age in range(99)]
    with pytest.raises(
        DataError, match="column 'age' is '4o' in training row 99, where 99 others are numbers"
    ):
        TablePreprocess.learned({"age": [*ages, "4o"]})
    assert TablePreprocess.learned({"age": [*ages, "4o"]}, ["age"]).categories
    mixed = TablePreprocess.learned({"size": ["1", "2", "S", "M"] * 5})
    assert mixed.categories[0].values == ("1", "2", "M", "S")


def test_a_category_is_one_however_it_is_spelt() -> None:
    preprocess = TablePreprocess.learned({"c": ["1.0", "2.0", "1.0"], "b": ["true", "false", "true"]}, ["c"])
    for one, true in (("1", "TRUE"), (1, True), (1.0, np.bool_(True)), ("1.00", "true")):
        assert preprocess.read({"c": one, "b": true}).tolist() == [1, 1]
    assert preprocess.read({"c": "01", "b": "yes"}).tolist() == [0, 0]  # another code


def test_what_libraries_call_missing_is_so() -> None:
    import pandas as pd

    row = {"amount": pd.NA, "age": pd.NaT, "country": pd.NA, "code": float("nan")}
    assert learned().read(row).tolist() == [0, 0, 1, 0, 0]
    frame = pd.DataFrame(COLUMNS).convert_dtypes()
    assert learned().read(frame.to_dict("records")[1])[2] == 1


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
        ({"day": [f"2026-01-{day:02}" for day in range(1, 61)]}, "of a date make a number"),
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
    assert preprocess.read({"a": 5, "b": 2}).tolist() == [0, 0]


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
    source = open_source(tmp_path / "rows.csv", examples=ROWS, leave_out=("b",))
    assert source["train"].item(0).keys() == {"a", "c"}
    with pytest.raises(DataError, match=r"data\.leave_out: no column 'd'"):
        open_source(tmp_path / "rows.csv", examples=ROWS, leave_out=("d",))
    with pytest.raises(DataError, match="the label, 'label': leave it out"):
        open_source(tmp_path / "rows.csv", examples=ROWS, column=("a", "label"), label_column="label")
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
