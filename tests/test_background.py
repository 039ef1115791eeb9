"""Work beside the rest: what comes of it, and that nothing waits for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reskit.background import in_background


def test_what_comes_of_it() -> None:
    assert in_background(lambda: 3, name="three").result(10) == 3
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0, name="none").result(10)


def test_the_process_ends_all_the_same() -> None:
    code = "import time, reskit.background as b; b.in_background(lambda: time.sleep(60), name='x')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
