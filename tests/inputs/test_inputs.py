"""What users name or hold, as texts, rows and recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reskit.errors import DataError
from reskit.inputs.recordings import find_recordings
from reskit.inputs.tables import find_rows
from reskit.inputs.texts import find_texts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.txt").write_text("one text\nof two lines")
    (tmp_path / "b.csv").write_text("n,text\n1,first\n2,second\n")
    (tmp_path / "c.wav").write_bytes(b"")
    pq.write_table(pa.table({"n": [3]}), tmp_path / "d.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(found: Any) -> list[str]:
    return [entry.name for entry in found]


def test_texts_are_strings_files_rows_and_bytes(folder: Path) -> None:
    found = list(find_texts(["hello", "a.txt", Path("b.csv"), b"bytes", "*.txt", "nowhere.txt"], True))
    assert [(entry.name, entry.item) for entry in found] == [
        ("hello", "hello"),
        ("a.txt", Path("a.txt")),
        ("b.csv row 1", "first"),
        ("b.csv row 2", "second"),
        ("inputs[3]", b"bytes"),
        ("a.txt", Path("a.txt")),
        ("nowhere.txt", "nowhere.txt"),  # no file, so it is what it says
    ]
    assert names(find_texts(folder, True)) == [str(folder / "a.txt")]


def test_long_texts_have_short_names_and_odd_ones_are_no_files(folder: Path) -> None:
    long = "word " * 2000
    (entry,) = find_texts(long, True)
    assert (entry.item, len(entry.name)) == (long, 60)
    for odd in ("", "what?", "[a", "a\0b", "line\nbreak", "x" * 300):
        (entry,) = find_texts(odd, True)
        assert entry.item == odd


def test_rows_are_records_frames_and_tables(folder: Path) -> None:
    frame = pd.DataFrame({"n": [5, 6]})
    found = list(find_rows([{"n": 1}, "b.csv", Path("d.parquet"), frame], True))
    assert names(found) == [
        "inputs[0]",
        "b.csv row 1",
        "b.csv row 2",
        "d.parquet row 1",
        "inputs[3] row 1",
        "inputs[3] row 2",
    ]
    assert [entry.item["n"] for entry in found] == [1, "1", "2", 3, 5, 6]
    assert names(find_rows({"n": 1}, True)) == ["inputs"]


def test_recordings_are_files_bytes_and_arrays(folder: Path) -> None:
    record = {"array": [0.0], "sampling_rate": 8000}
    assert names(find_recordings([folder, "*.wav", b"", record], True)) == [
        str(folder / "c.wav"),
        "c.wav",
        "inputs[2]",
        "inputs[3]",
    ]


@pytest.mark.parametrize(
    ("find", "given", "said"),
    [
        (find_texts, 7, "cannot predict for int: give texts"),
        (find_texts, [], "the list is empty"),
        (find_rows, [7], "cannot predict for int: give tables"),
        (find_rows, "nowhere.csv", "no such file"),
        (find_rows, "c.wav", "no rows"),
        (find_recordings, [[]], "cannot predict for list: give paths"),
        (find_recordings, "*.flac", "no file matches"),
    ],
)
def test_nothing_to_answer(folder: Path, find: Any, given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(find(given, True))


def test_one_bad_thing_among_others_has_an_error_in_its_place(folder: Path) -> None:
    first, second = find_rows(["nowhere.csv", {"n": 1}], True)
    assert first.error is not None
    assert "no such file" in first.error
    assert second.item == {"n": 1}
