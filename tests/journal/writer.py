"""Writes events until it is killed; every id that is safe is printed."""

from __future__ import annotations

import sys
from pathlib import Path

from reskit.journal import Journal

with Journal(Path(sys.argv[1])) as journal:
    for count in range(1_000_000):
        print(journal.append("traffic", model="digits", version="1", requests=count, failed=0), flush=True)
