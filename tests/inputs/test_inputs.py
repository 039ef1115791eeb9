"""What users name or hold, as texts, rows and recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reskit.data.texts import TextPreprocess
from reskit.errors import DataError
from reskit.inputs.recordings import find_recordings
from reskit.inputs.tables import find_rows
from reskit.inputs.texts import find_texts as find_with


def find_texts(inputs: Any, recursive: bool, column: str | None = None) -> Any:
    return find_with(inputs, recursive, TextPreprocess.learned(["a"], unit="word", column=column))


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
    found = list(find_texts(["hello", Path("a.txt"), Path("b.csv"), b"bytes", Path("*.txt")], True))
    assert [(entry.name, entry.item) for entry in found] == [
        ("hello", "hello"),
        ("a.txt", Path("a.txt")),
        ("b.csv row 1", "first"),
        ("b.csv row 2", "second"),
        ("inputs[3]", b"bytes"),
        ("a.txt", Path("a.txt")),
    ]
    assert names(find_texts(folder, True)) == [
        str(folder / "a.txt"),
        f"{folder / 'b.csv'} row 1",
        f"{folder / 'b.csv'} row 2",
    ]


def test_a_string_is_a_text_whatever_it_says(folder: Path) -> None:
    long = "word " * 2000
    (entry,) = find_texts(long, True)
    assert (entry.item, len(entry.name)) == (long, 60)
    for text in ("", "a.txt", ".", "**", "what?", "a\0b", "line\nbreak"):
        (entry,) = find_texts(text, True)
        assert entry.item == text


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
        (find_rows, pd.DataFrame({"n": []}), "has no rows"),
        (find_texts, Path("*.md"), "no file matches"),
        (find_recordings, [[]], "cannot predict for list: give paths"),
        (find_recordings, "*.flac", "no file matches"),
    ],
)
def test_nothing_to_answer(folder: Path, find: Any, given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(find(given, True))


def test_one_bad_file_among_others_has_an_error_in_its_place(folder: Path) -> None:
    (folder / "b2.csv").write_text("n,text\n1\n")
    found = list(find_rows(folder, True))
    assert [entry.error is None for entry in found] == [True, True, False, True]
    assert found[2].error is not None
    assert "line 2 does not have the columns" in found[2].error
    assert [entry.error is None for entry in find_texts(folder, True)] == [True, True, True, False]
    (missing,) = find_rows("nowhere.csv", True)
    assert missing.error is not None
    assert "no such file" in missing.error


def test_texts_are_in_the_column_they_were_in_in_training(folder: Path) -> None:
    (folder / "two.csv").write_text("text,body,n\nticket,first,1\nticket,second,2\n")
    assert [entry.item for entry in find_texts(folder / "two.csv", True, "body")] == ["first", "second"]
    assert [entry.item for entry in find_texts(folder / "two.csv", True)] == ["ticket", "ticket"]
    (folder / "odd.csv").write_text("n,m\n1,2\n")
    (odd,) = find_texts(folder / "odd.csv", True, "body")
    assert odd.error is not None
    assert "odd.csv has no column 'body', as in training, of texts: it has n, m" in odd.error
