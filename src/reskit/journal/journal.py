"""An append-only journal in a file of SQLite: one writer, every event a transaction of its own.

What was appended is on disk when `append` returns, whatever becomes of the process or the machine then.
Anyone may read while it is written.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self
from urllib.parse import quote

from reskit.errors import ConfigError, OutputError

__all__ = ["Event", "Journal", "Kind", "read_journal"]

Kind = Literal[
    "start", "heartbeat", "stop", "traffic", "begun", "promoted", "rolled_back", "refused", "cancelled"
]
_APPLICATION = 0x72736A31
"""In the file's header, so that no other database is taken for a journal."""
_SCHEMA = f"""
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    run TEXT NOT NULL,
    kind TEXT NOT NULL,
    model TEXT,
    version TEXT,
    deployment INTEGER,
    data TEXT NOT NULL
) STRICT;
CREATE TRIGGER never_altered BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are never altered'); END;
CREATE TRIGGER never_deleted BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
PRAGMA application_id = {_APPLICATION};
"""


class Event(NamedTuple):
    """One thing that happened.

    Attributes:
        id: its place; later events have larger ones.
        at: Unix time.
        run: the life of a service that it belongs to.
        kind: what happened.
        model: to which model.
        version: to which version of it.
        deployment: the id of the event that began the deployment it belongs to.
        data: the rest.
    """

    id: int
    at: float
    run: str
    kind: Kind
    model: str | None
    version: str | None
    deployment: int | None
    data: dict[str, Any]


class Journal:
    """A journal to write in; used from one thread at a time.

    Args:
        path: its file, made where there is none.

    Raises:
        ConfigError: it is something else, cannot be written, or another service writes in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = uuid.uuid4().hex
        with contextlib.ExitStack() as undo:
            undo.enter_context(_naming(path))
            self._lock = undo.enter_context(_lock(path))
            self._database = undo.enter_context(contextlib.closing(_connect(path)))
            self._undo = undo.pop_all()

    def append(
        self,
        kind: Kind,
        *,
        model: str | None = None,
        version: str | None = None,
        deployment: int | None = None,
        **data: Any,
    ) -> int:
        """Write an event, safe on disk when this returns; return its id.

        Raises:
            OutputError: it cannot be written.
        """
        row = (time.time(), self.run, kind, model, version, deployment, json.dumps(data, sort_keys=True))
        try:
            done = self._database.execute(
                "INSERT INTO events (at, run, kind, model, version, deployment, data)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        except sqlite3.Error as error:
            raise OutputError(f"cannot write the journal {self.path}: {error}; free space there") from None
        return int(done.lastrowid or 0)

    def deployments(self) -> list[Event]:
        """Return what was written of deployments and starts until now, also by services before this one.

        Raises:
            ConfigError: the journal is damaged.
        """
        with _naming(self.path):
            return list(_rows(self._database, "kind NOT IN ('heartbeat', 'traffic')"))

    def close(self) -> None:
        """Let others write."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: str | Path) -> Iterator[Event]:
    """Yield the events of a journal, which may be in use, or left behind by a service that was killed.

    Raises:
        ConfigError: there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no journal {path}: give the file that `reskit serve --journal` wrote")
    with _naming(path):
        where = f"file:{quote(str(path.absolute()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(where, uri=True)) as database:
            if _is_journal(database, path):
                yield from _rows(database)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        fresh = not _is_journal(database, path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if fresh:
            database.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
    except BaseException:
        database.close()
        raise
    return database


def _is_journal(database: sqlite3.Connection, path: Path) -> bool:
    """Return whether it is a journal; False where it is empty.

    Raises:
        ConfigError: it is something else.
    """
    (found,) = database.execute("PRAGMA application_id").fetchone()
    if found == _APPLICATION:
        return True
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found or tables:
        raise ConfigError(f"{path} is a database of something else: choose another file for the journal")
    return False


def _rows(database: sqlite3.Connection, where: str = "true") -> Iterator[Event]:
    names = ", ".join(Event._fields)
    for row in database.execute(f"SELECT {names} FROM events WHERE {where} ORDER BY id"):
        yield Event._make((*row[:-1], json.loads(row[-1])))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in what the system or SQLite say of it."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path} cannot be used as a journal: {reason}; choose another file") from None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[IO[bytes]]:
    """Keep others from writing; the system lets go when the process ends, however it ends."""
    # A file of its own: closing another handle of the database would take SQLite's locks away.
    with path.with_name(f"{path.name}.lock").open("ab") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another service writes in the journal {path}: give each one of its own"
                ) from None
        yield file
