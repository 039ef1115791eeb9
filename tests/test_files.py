"""Files are written whole or not at all, and nothing is left lying about."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reskit.errors import OutputError
from reskit.files import atomic_folder, sha256, to_json, write_text, writing

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


# Text.


def test_text_is_written_with_its_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "ünï 猫\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "ünï 猫\n".encode()
    assert stat.S_IMODE((tmp_path / "a" / "b" / "c.txt").stat().st_mode) == 0o644
    write_text(tmp_path / "a" / "b" / "c.txt", "new")
    assert tree(tmp_path) == {"a/b/c.txt": "new"}


@pytest.mark.parametrize("error", [FULL, READ_ONLY])
@pytest.mark.parametrize(
    "place", ["os.fsync", "pathlib.Path.replace", "tempfile.mkstemp", "pathlib.Path.write_text"]
)
def test_old_text_stays_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: OSError
) -> None:
    write_text(tmp_path / "a.txt", "old")
    with monkeypatch.context() as patch:
        patch.setattr(place, failing(error))
        with pytest.raises(OutputError) as caught:
            write_text(tmp_path / "a.txt", "new")
    assert tree(tmp_path) == {"a.txt": "old"}
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'a.txt'}: {error.strerror}; free space or choose another --out"
    )


def test_an_interrupt_while_writing_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "a.txt", "new")
    assert tree(tmp_path) == {"a.txt": "old"}


def test_text_below_a_file_or_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot write"):
            write_text(place, "new")
    assert tree(tmp_path) == {"file": "here"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_name_too_long_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        write_text(tmp_path / ("x" * 300), "new")


# Folders.


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "folder"
    for names in (("a", "b"), ("b", "c")):
        with atomic_folder(place) as staging:
            (staging / "sub").mkdir()
            for name in names:
                (staging / "sub" / name).write_text(name)
    assert tree(tmp_path) == {"deep/folder/sub/b": "b", "deep/folder/sub/c": "c"}
    assert list(place.parent.iterdir()) == [place]
    assert stat.S_IMODE(place.stat().st_mode) == 0o755


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk" / "folder").mkdir(parents=True)
    (tmp_path / "disk" / "folder" / "a").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    with atomic_folder(tmp_path / "link") as staging:
        (staging / "b").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path) == {"disk/folder/b": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [FULL, ValueError("a bug"), KeyboardInterrupt()])
def test_an_old_folder_stays_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    place = tmp_path / "folder"
    with atomic_folder(place) as staging:
        (staging / "a").write_text("old")

    def replace() -> None:
        with atomic_folder(place) as staging:
            (staging / "a").write_text("new")
            raise error

    with pytest.raises(OutputError if error is FULL else type(error)):
        replace()
    assert tree(tmp_path) == {"folder/a": "old"}
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("call", [1, 2])
def test_an_old_folder_stays_when_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    place = tmp_path / "folder"
    with atomic_folder(place) as staging:
        (staging / "a").write_text("old")
    rename, calls = Path.rename, []

    def sometimes(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == call:
            raise FULL
        return rename(path, target)

    def replace() -> None:
        with atomic_folder(place) as staging:
            (staging / "a").write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", sometimes)
        with pytest.raises(OutputError, match="No space left"):
            replace()
    assert tree(tmp_path) == {"folder/a": "old"}
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_that_was_not_there_is_not_there_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "folder") as staging:
            (staging / "a").write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing(FULL))
        with pytest.raises(OutputError):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_neither_below_a_file_nor_over_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OutputError, match="cannot write"), atomic_folder(place):
            pytest.fail("there is nothing to fill")
    assert tree(tmp_path) == {"file": "here"}
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_written_is_on_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr("os.fsync", lambda number: (order.append("sync"), fsync(number))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (order.append("rename"), rename(path, to))[1])
    with atomic_folder(tmp_path / "folder") as staging:
        (staging / "a").write_text("a")
        (staging / "b").write_text("b")
    assert order == ["sync", "sync", "rename", "sync"]


# The rest.


def test_only_failures_of_the_file_system_are_turned(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*: No space left on device") as caught,
        writing(tmp_path),
    ):
        raise FULL
    assert caught.value.__cause__ is FULL
    with pytest.raises(OutputError, match="something odd"), writing(tmp_path):
        raise OSError("something odd")
    with pytest.raises(ValueError, match="a bug"), writing(tmp_path):
        raise ValueError("a bug")


def test_sha256_of_a_large_file(tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 17)
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_json_has_neither_nan_nor_infinity() -> None:
    value = {
        "nan": float("nan"),
        "deep": [{"inf": float("inf")}, (float("-inf"), 1.5)],
        "numpy": np.float64("nan"),
        "kept": [0.1 + 0.2, 1e-300, 5, True, None, "NaN", "猫"],
    }
    text = to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "deep": [{"inf": None}, [None, 1.5]],
        "numpy": None,
        "kept": [0.1 + 0.2, 1e-300, 5, True, None, "NaN", "猫"],
    }
    assert text.endswith("}\n")
    assert "猫" in text


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """/dev/full refuses every write: the same error as a full disk, from the kernel itself."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "source").write_text("content")
    with pytest.raises(OutputError, match="No space left on device"), writing(tmp_path):
        shutil.copyfile(tmp_path / "source", "/dev/full")
