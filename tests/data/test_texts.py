"""Texts: how they are cut, counted and found."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest
import torch

from reskit.data import open_source
from reskit.data.text_sources import TEXTS, TextSplit
from reskit.data.texts import TextPreprocess, Tokens, read_text
from reskit.errors import DataError


def words(*texts: str, **options: object) -> TextPreprocess:
    return TextPreprocess.learned(texts, unit="word", **options)  # type: ignore[arg-type]


def test_words_are_cut_lowered_and_placed_by_how_often_they_are() -> None:
    preprocess = words("The cat, the dog.", "the cat isn't it")
    assert preprocess.vocabulary == ("the", "cat", ",", ".", "dog", "isn't", "it")
    assert preprocess.channels == 9
    assert preprocess.shape == (8,)
    tokens = preprocess.read("THE Cat sees, isn't it?")
    assert (tokens.dtype, tokens.tolist()) == (torch.int32, [2, 3, 1, 4, 7, 8, 1, 0])
    assert preprocess.words(tokens) == ["the", "cat", "\u2423", ",", "isn't", "it", "\u2423"]


def test_a_long_text_is_cut_and_a_rare_word_is_unknown() -> None:
    preprocess = words("a a b", "a c", length=2, least=2)
    assert preprocess.vocabulary == ("a",)
    assert preprocess.read("a b a a a").tolist() == [2, 1]
    assert words("a a b b c", most=2).vocabulary == ("a", "b")


def test_characters_of_any_script() -> None:
    preprocess = TextPreprocess.learned(["\u00c9t\u00e9", "e\u0301t"], unit="character", length=4)
    assert preprocess.vocabulary == ("\u00e9", "t")  # composed or not, it is one letter
    assert preprocess.read("T\u00c9 \u732b!").tolist() == [3, 2, 1, 1]


def test_no_text_takes_long() -> None:
    """Marks on one letter are sorted in quadratic time, and what is cut off is not looked at."""
    preprocess = words("a b")
    began = time.perf_counter()
    assert preprocess.read("a" + "\u0300\u0316" * 2_000_000 + " b").tolist()[0] in (1, 2)
    assert preprocess.read(" " * 100 + "b" + " a" * 5_000_000).tolist()[0] == 3
    assert time.perf_counter() - began < 5
    assert preprocess.read("a" + "\u0301" * 40).tolist() == preprocess.read("a" + "\u0301" * 30).tolist()


def test_the_usual_length_is_that_of_nearly_all_texts() -> None:
    assert words(*["a b c"] * 99, "a " * 500).length == 8
    assert words(*["a b c"] * 2, "a " * 5000).length == 256


@pytest.mark.parametrize(
    ("given", "said"), [("", "empty"), (" \n", "empty"), (None, "no text"), (7, "from int")]
)
def test_what_is_no_text(given: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        words("a").read(given)


def test_files_are_utf8(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve")
    assert read_text(file) == "na\u00efve"
    file.write_bytes(b"na\xefve")
    with pytest.raises(DataError, match=r"a\.txt: it is not UTF-8"):
        read_text(file)
    with pytest.raises(DataError, match="no such file"):
        read_text(tmp_path / "b.txt")


def test_a_string_is_never_taken_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("inside")
    assert read_text(str(tmp_path / "a.txt")) == str(tmp_path / "a.txt")


def test_tokens_that_no_text_has_are_unknown() -> None:
    found = Tokens(5)(torch.tensor([[0, 4, 5, -1, 2**30]], dtype=torch.int32))
    assert found.tolist() == [[0, 4, 1, 1, 1]]
    with pytest.raises(DataError, match="whole numbers"):
        Tokens(5)(torch.zeros(1, 2))


def test_a_bundle_stores_it_and_hostile_settings_are_refused() -> None:
    preprocess = words("a b")
    assert TextPreprocess.model_validate_json(preprocess.model_dump_json()) == preprocess
    for change in ({"channels": 3}, {"length": 0}, {"length": 10**9}, {"vocabulary": []}, {"more": 1}):
        with pytest.raises(ValueError, match="validation error"):
            TextPreprocess.model_validate({**preprocess.model_dump(), **change})


# Places.


def test_a_table_of_texts(tmp_path: Path) -> None:
    lines = "review\tsentiment\n" + "".join(f'"a ""good"" one, {i}"\tgood\nbad {i}\tbad\n' for i in range(5))
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    source = open_source(tmp_path / "a.tsv.gz", examples=TEXTS)
    info = source.describe()
    assert info.columns == {"text": "review", "label": "sentiment"}
    assert info.classes == ["bad", "good"]
    assert info.image_sizes is None
    assert "texts of 2 to 7 words" in info.lines()[1]
    split = source["train"]
    assert isinstance(split, TextSplit)
    assert 'a "good" one, ' in "".join(split.texts())
    changed = lines.replace("bad 0", "worse 0")
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(changed.encode()))
    assert open_source(tmp_path / "b.tsv.gz", examples=TEXTS).fingerprint != source.fingerprint


def test_a_folder_of_texts(tmp_path: Path) -> None:
    for name in ("pos", "neg"):
        for number in range(4):
            place = tmp_path / name / f"{number}.txt"
            place.parent.mkdir(exist_ok=True)
            place.write_text(f"a {name} text", encoding="utf-8")
    (tmp_path / "pos" / "notes.md").write_text("no text")
    source = open_source(tmp_path, examples=TEXTS)
    assert source.classes == ["neg", "pos"]
    assert read_text(source["train"].item(0)).endswith("text")
    assert source["train"].row_name(0).endswith(".txt")
    assert any("notes.md" in note for note in source.notes)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("text,label\n", "no rows"),
        ("text,label\na\n", "line 2"),
        ("words,label\na,b\nc,d\n", "text_column"),
        ("text,label\na,b\nc,\n", "no label"),
        ("text;label\na;b\n", "semicolons"),
        ("text,text,label\na,b,c\n", "two columns 'text'"),
        ('text,label\n"two\nlines",b\nc\n', "line 4"),
        ("text,label\n" + "a" * 200_000 + ",b\n", "field larger than field limit"),
    ],
)
def test_wrong_tables(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(lines)
    with pytest.raises(DataError, match=said):
        open_source(tmp_path / "a.csv", examples=TEXTS)


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\na,b\n" * 100)[:40])
    with pytest.raises(DataError, match=r"a\.csv\.gz"):
        open_source(tmp_path / "a.csv.gz", examples=TEXTS)


def test_data_must_be_named() -> None:
    with pytest.raises(DataError, match="no data: say where the labelled texts are"):
        open_source(None, examples=TEXTS)
