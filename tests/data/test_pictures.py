"""Folders of pictures without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from reskit.data.config import DataConfig
from reskit.data.pictures import list_pictures, open_pictures
from reskit.errors import DataError


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)


def test_folders_of_one_split_go_together(tmp_path: Path) -> None:
    write(tmp_path, "train/a", "val/b", "validation/c", "test/d", "testing/e")
    found = list_pictures(tmp_path)
    assert {name: [path.stem for path in paths] for name, paths in found.items()} == {
        "train": ["a"],
        "validation": ["b", "c"],
        "test": ["d", "e"],
    }


def test_nothing_is_trained_on_what_is_called_a_test(tmp_path: Path) -> None:
    write(tmp_path, "val/a", "test/b", "test/c")
    with pytest.raises(DataError, match=r"has the splits test, validation but no 'train'"):
        list_pictures(tmp_path)


def test_pictures_anywhere_below_are_one_lot(tmp_path: Path) -> None:
    write(tmp_path, "a", "deep/b", "deep/er/c", ".hidden/d")
    (tmp_path / "notes.txt").write_text("no picture")
    source = open_pictures(DataConfig(path=str(tmp_path), holdout=0.34), seed=0)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.touch()])
def test_no_folder_or_an_empty_one_is_said(tmp_path: Path, make: object) -> None:
    place = tmp_path / "place"
    make(place)  # type: ignore[operator]
    with pytest.raises(DataError, match="place"):
        open_pictures(DataConfig(path=str(place)), seed=0)
