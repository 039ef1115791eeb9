"""What `doctor` and provenance say of the machine is true, as far as another way of asking tells."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from reskit import __version__
from reskit.environment import (
    _left_in_groups,
    available_memory,
    extras,
    git_commit,
    machine,
    return_memory,
    usable_cores,
    versions,
)


def test_the_machine() -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] == usable_cores() == len(psutil.Process().cpu_affinity() or [])
    assert found["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.1)
    assert found["processor"]
    assert platform.machine() in found["system"]
    assert len(found["accelerators"]) >= torch.cuda.device_count()


def test_memory_that_is_left_is_no_more_than_the_system_says() -> None:
    return_memory()
    assert 0 < available_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        (  # version 2: the limit of the group around it counts too
            "0::/a/b\n",
            {
                "a/b/memory": {"max": "max", "current": "5", "stat": "anon 1\ninactive_file 2"},
                "a/memory": {"max": "100", "current": "60", "stat": "anon 40\ninactive_file 15"},
            },
            [55],
        ),
        (  # version 1 in a container, which sees its own group alone
            "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/docker/ab\n",
            {
                "memory/memory": {
                    "limit_in_bytes": "90",
                    "usage_in_bytes": "50",
                    "stat": "inactive_file 1\ntotal_inactive_file 3",
                }
            },
            [43],
        ),
        ("0::/\n", {}, []),
    ],
)
def test_limits_of_containers_are_read(
    tmp_path: Path, own: str, files: dict[str, dict[str, str]], left: list[int]
) -> None:
    for stem, contents in files.items():
        for name, text in contents.items():
            file = tmp_path / "groups" / f"{stem}.{name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    assert list(_left_in_groups(tmp_path / "own", tmp_path / "groups")) == left
    assert list(_left_in_groups(tmp_path / "nowhere")) == []


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["reskit"] == __version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert set(found) > {"torchvision", "accelerate", "torchmetrics", "datasets", "safetensors", "numpy"}


def test_extras_list_only_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "torch>=2.9",
        "numpy>=1; extra == 'here'",
        'no-such-package.at_all>=2 ; extra == "absent"',
        "numpy ; extra == 'absent'",
        "reskit[here] ; extra == 'dev'",
        "reskit[here]>=0 ; extra == 'absent'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: requirements)
    assert extras() == {"here": [], "absent": ["no-such-package.at_all"]}


def test_extras_of_this_package_are_those_it_declares() -> None:
    declared = set(importlib.metadata.metadata("reskit").get_all("Provides-Extra") or [])
    assert set(extras()) == declared


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    (tmp_path / "a").write_text("a")
    for command in (["init", "-q"], ["add", "a"], [*who, "commit", "-q", "-m", "one"], ["tag", "v1"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    clean = git_commit()
    assert clean is not None
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    (tmp_path / "a").write_text("b")
    assert git_commit() == f"{clean}-dirty"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    assert git_commit() is None
