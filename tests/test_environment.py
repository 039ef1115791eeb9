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
from reskit.environment import extras, git_commit, machine, usable_cores, versions


def test_the_machine() -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] == usable_cores() == len(psutil.Process().cpu_affinity() or [])
    assert found["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.1)
    assert found["processor"]
    assert platform.machine() in found["system"]
    assert len(found["accelerators"]) >= torch.cuda.device_count()


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
