"""What runs in the container: the image's own command, told by SageMaker, asked, and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from reskit.deploying import deploy


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with `reskit` and `python`, as the image has them first in its PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, words in (("reskit", " -m reskit"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def test_the_images_command_serves(digits_run: Any, tmp_path: Path, programs: Path) -> None:
    folder = deploy(digits_run.bundle, to="sagemaker", out=tmp_path / "out", name="digits").folder
    text = (folder / "Dockerfile").read_text(encoding="utf-8")
    entrypoint = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.M)[0])
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n  CMD (.*)$", text, re.M)
    assert "digits=/models/digits" in entrypoint[-1]  # which this machine has not: the variable names another
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RESKIT_MODELS": f"digits={folder / 'bundle'}",
        "SAGEMAKER_BIND_TO_PORT": str(port),
    }
    entrypoint[-1] = entrypoint[-1].replace("--host 0.0.0.0", "--host 127.0.0.1").replace("--drain 5", "")
    running = subprocess.Popen([*entrypoint, "serve"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        unwell = subprocess.run(["/bin/sh", "-c", check], env=environment, capture_output=True)
        assert unwell.returncode != 0  # nothing answers yet
        deadline = time.monotonic() + 150
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
                    assert answer.status == 200
                break
            except urllib.error.URLError:
                assert running.poll() is None, running.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
        subprocess.run(["/bin/sh", "-c", check], env=environment, check=True)
        running.send_signal(signal.SIGTERM)  # goes to reskit itself: the shell made way for it
        _, said = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0
    assert f"rest http://127.0.0.1:{port};" in said
    assert "digits version 1" in said
