"""A journal keeps what was written, whoever is killed, and lets nobody alter it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reskit.errors import ConfigError
from reskit.journal import Event, Journal, Kind, history, read_journal

WRITER = Path(__file__).with_name("writer.py")


def test_events_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a b?.journal"
    with Journal(path) as journal:
        assert journal.append("start", serving={"digits": "1"}) == 1
        number = journal.append("begun", model="digits", version="2", mode="canary", previous="1")
        journal.append("rolled_back", model="digits", version="2", deployment=number, reason="too slow")
        assert list(read_journal(path)) == journal.deployments()
    with Journal(path) as again:
        again.append("start", serving={})
        events = again.deployments()
    assert [(event.id, event.kind, event.deployment) for event in events] == [
        (1, "start", None),
        (2, "begun", None),
        (3, "rolled_back", 2),
        (4, "start", None),
    ]
    assert events[0].data == {"serving": {"digits": "1"}}
    assert events[0].run == events[2].run != events[3].run
    assert abs(events[3].at - time.time()) < 60


def test_nothing_is_lost_by_kill_nine(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    safe: list[int] = []
    for attempt in range(8):
        with subprocess.Popen([sys.executable, WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline()) for _ in range(1 + 5 * attempt)]
            writer.kill()
            rest = [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        safe += told + [int(line) for line in rest]
        found = list(read_journal(path))  # before anything else opened the file to write
        assert {event.id for event in found} >= set(safe)
        assert len(found) - len(safe) <= attempt + 1  # at most the one a life that was not told of any more
        assert [event.id for event in found] == list(range(1, len(found) + 1))
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        (runs,) = database.execute("SELECT count(DISTINCT run) FROM events").fetchone()
    database.close()
    assert runs == 8


def test_events_are_neither_altered_nor_deleted(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append("start")
    database = sqlite3.connect(path)
    for statement in ("UPDATE events SET at = 0", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="events are never"):
            database.execute(statement)
    database.close()


def test_one_service_writes_others_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append("start")
        with pytest.raises(ConfigError, match="another service writes in the journal"):
            Journal(path)
        assert len(list(read_journal(path))) == 1
    Journal(path).close()


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no journal"):
        list(read_journal(tmp_path / "nothing"))
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("no database, but long enough to be looked at " * 50)
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE mine (a)")
    database.close()
    for path, message in ((text, "not a database"), (other, "a database of something else")):
        with pytest.raises(ConfigError, match=message):
            list(read_journal(path))
        with pytest.raises(ConfigError, match=message):
            Journal(path)
    with pytest.raises(ConfigError, match="cannot be used as a journal"):
        Journal(tmp_path / "no folder" / "journal")
    (tmp_path / "empty").touch()
    assert list(read_journal(tmp_path / "empty")) == []


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        for _ in range(200):
            journal.append("start", serving={"digits": "1" * 100})
    data = bytearray(path.read_bytes())
    assert len(data) > 30_000
    data[len(data) // 3 :] = b"\xff" * len(data[len(data) // 3 :])
    path.write_bytes(data)
    with (
        Journal(path) as journal,
        pytest.raises(ConfigError, match=r"cannot be used as a journal: .*malformed"),
    ):
        journal.deployments()


class Told:
    """Events at times a test says."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(
        self, at: float, kind: Kind, version: str | None = None, deployment: int | None = None, **data: Any
    ) -> int:
        number = len(self.events) + 1
        run = data.pop("run", "a")
        self.events.append(Event(number, at, run, kind, "digits", version, deployment, data))
        return number


def test_rates_of_deployments() -> None:
    tell = Told()
    tell(0, "start", serving={"digits": "1"})
    tell(10, "traffic", "1", requests=100, failed=8)
    good = tell(20, "begun", "2", mode="canary", previous="1")
    tell(25, "traffic", "1", requests=100, failed=2)
    tell(30, "promoted", "2", good, figures={"asked": 10})
    tell(40, "traffic", "2", requests=400, failed=2)
    bad = tell(50, "begun", "3", mode="shadow", previous="2")
    tell(60, "rolled_back", "3", bad, reason="disagreement")
    damaged = tell(61, "begun", "4", mode="at-once", previous="2")
    tell(62, "refused", "4", damaged, reason="altered")
    tell(63, "traffic", "2", requests=100, failed=3)
    killed = tell(64, "begun", "5", mode="canary", previous="2")
    tell(70, "start", serving={"digits": "2"}, run="b")
    later = tell(71, "begun", "6", mode="at-once", previous="2", run="b")
    tell(72, "promoted", "6", later, run="b")
    back = tell(73, "begun", "2", mode="at-once", previous="6", run="b")
    tell(74, "promoted", "2", back, run="b")
    going = tell(75, "begun", "7", mode="canary", previous="2", run="b")
    found = history(tell.events)
    assert {one.id: one.outcome for one in found.deployments} == {
        good: "promoted",
        bad: "rolled_back",
        damaged: "refused",
        killed: "interrupted",
        later: "reverted",
        back: "promoted",
        going: "running",
    }
    assert found.success_rate == 2 / 5
    first = found.deployments[0]
    assert (first.before.requests, first.before.failed) == (200, 10)
    assert (first.after.requests, first.after.failed) == (500, 5)
    assert first.error_reduction == pytest.approx(0.8)  # from 5 % to 1 %
    assert found.error_reduction == pytest.approx(0.8)
    assert found.deployments[1].error_reduction is None
    assert found.deployments[-2].error_reduction is None
    assert first.figures == {"asked": 10}
    assert found.lines()[0].endswith("digits 1 > 2  canary: promoted; errors 5.00% > 1.00%")


def test_uptime_ends_with_the_last_sign_of_life() -> None:
    tell = Told()
    tell(0, "start")
    tell(15, "heartbeat", ready=True)
    tell(30, "heartbeat", ready=False)  # from 15 to 30 it was not ready
    tell(45, "heartbeat", ready=True)  # killed some time after
    tell(60, "start", run="b")
    tell(100, "stop", run="b", ready=True)
    found = history(tell.events)
    assert (found.seconds, found.seconds_up) == (100, 70)
    assert found.uptime == 0.7
    assert (found.starts, found.kills) == (2, 1)
    nothing = history([])
    assert (nothing.uptime, nothing.success_rate, nothing.error_reduction) == (None, None, None)


def test_the_command_tells_people_and_programs(tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append("start")
        number = journal.append("begun", model="digits", version="2", mode="canary", previous="1")
        journal.append("refused", model="digits", version="2", deployment=number, reason="was altered")
    plain = cli("deploy", "history", path)
    assert (plain.code, plain.err) == (0, "")
    assert "deployment success rate: 0.00%" in plain.out
    assert "error-reduction rate: not known yet" in plain.out
    assert "digits 1 > 2  canary: refused (was altered)" in plain.out
    told = json.loads(cli("deploy", "history", path, "--json").out)
    assert told["deployment_success_rate"] == 0
    assert told["deployments"][0]["outcome"] == "refused"
    assert told["deployments"][0]["error_rate_before"] is None
    wrong = cli("deploy", "history", tmp_path / "nothing")
    assert (wrong.code, wrong.out) == (1, "")
    assert "there is no journal" in wrong.err
    assert wrong.err.count("\n") == 1
