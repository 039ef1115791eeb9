"""What watches a service from outside names only what there is, and the tools it is for accept it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from reskit.drift import Scores
from reskit.errors import OutputError
from reskit.monitoring import FILES, write_monitoring
from reskit.serving import faults
from reskit.serving.deploying.metrics import DeploymentMetrics
from reskit.serving.drift import DriftState
from reskit.serving.metrics import Metrics, ModelMetrics, State

HERE = Path(__file__).parent
WORDS = {"sum", "min", "max", "count", "and", "or", "unless", "offset"}
"""Of the language, where no bracket comes after them."""
GIVEN_BY_PROMETHEUS = {"job", "instance"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_monitoring(tmp_path / "monitoring")
    return tmp_path / "monitoring"


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """The labels of every series a service has, by name."""
    drift = DriftState(1, 1, Scores(1.0, 1.0), Scores(0.5, 0.5), (False, False))
    state = State("m", "1", "resnet8", "eager", depth=0, ready=True, drift=drift)
    found = Metrics(lambda: [state])
    ModelMetrics(found, "m", "1").finished("rest", 1, None)
    found.failed("busy")
    DeploymentMetrics(found.registry, lambda: [("m", "1", 1.0)]).ended("m", "promoted")
    series = {"up": set()}
    for family in text_string_to_metric_families(found.text().decode()):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


def rules(folder: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((folder / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(folder: Path) -> list[dict[str, Any]]:
    found = json.loads((folder / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions(folder: Path) -> list[str]:
    """Return every expression of the rules and of the dashboard, its variables filled in."""
    document = json.loads((folder / "dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in panels(folder) for target in panel["targets"]]
    asked += [note["expr"] for note in document["annotations"]["list"]]
    filled = [
        text.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$model", ".*")
        for text in asked
    ]
    assert not any("$" in text for text in filled)
    return [*(rule["expr"] for rule in rules(folder)), *filled]


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the series an expression names, each with the labels and values it wants."""
    skipped = r'"[^"]*"|\[[^\]]*\]|\b(?:by|on)\s*\([^)]*\)'
    named = r'\b([a-z_]\w*)\b(?!\s*\()(\{(?:[^}"]|"[^"]*")*\})?'
    return [
        (found[1], re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"', found[2] or ""))
        for found in re.finditer(f"{skipped}|{named}", expression)
        if found[1] and found[1] not in WORDS
    ]


def test_every_metric_and_label_that_is_named_exists(folder: Path, metrics: dict[str, set[str]]) -> None:
    kinds = {
        getattr(faults, name).kind for name in faults.__all__ if hasattr(getattr(faults, name), "kind")
    } | {"internal", "answered", "cancelled", "rolled_back", "refused"}
    values = {
        "outcome": kinds,
        "kind": kinds,
        "statistic": set(Scores._fields),
        "stage": {"preprocess", "queue", "infer", "total"},
        "job": {"reskit"},
    }
    seen = set()
    for expression in expressions(folder):
        found = selectors(expression)
        assert found, expression
        for name, wanted in found:
            assert name in metrics, expression
            seen.add(name)
            for label, value in wanted:
                assert label in metrics[name] | GIVEN_BY_PROMETHEUS, expression
                if value != ".*":
                    assert set(value.split("|")) <= values[label], expression
        for labels in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
            known = set().union(*(metrics[name] for name, _ in found)) | GIVEN_BY_PROMETHEUS
            assert set(labels.split(", ")) <= known, expression
    # The other way round: nothing the service says of itself is left out of the dashboard.
    own, shown = (
        {
            re.sub(r"_(bucket|sum|count)$", "", name)
            for name in names
            if name.startswith("reskit_") and not name.endswith("_created")
        }
        for names in (metrics, seen)
    )
    assert own == shown


def test_names_in_expressions_are_found() -> None:
    assert selectors('sum by (a) (rate(wrong_total{model="a{b}", x!="y"}[5m])) > 2 or max(time() - up)') == [
        ("wrong_total", [("model", "a{b}"), ("x", "y")]),
        ("up", []),
    ]


def test_every_alert_says_what_to_do_and_is_tested(folder: Path) -> None:
    cases = yaml.safe_load((HERE / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    tested = {case["alertname"] for group in cases for case in group["alert_rule_test"] if case["exp_alerts"]}
    assert {rule["alert"] for rule in rules(folder)} == tested
    for rule in rules(folder):
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_panels_have_each_their_place(folder: Path) -> None:
    document = json.loads((folder / "dashboard.json").read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels(folder):
        assert panel["description"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


# The real tools, where they are installed.


def tool(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which(words[0]) is None:
        pytest.skip(f"needs {words[0]}, of the Debian packages prometheus and prometheus-alertmanager")
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "words",
    [
        ("promtool", "check", "rules", "--lint-fatal", "rules.yml"),
        ("promtool", "check", "config", "prometheus.yml"),
        ("amtool", "check-config", "alertmanager.yml"),
        ("promtool", "test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_the_tools_accept_it(folder: Path, words: tuple[str, ...]) -> None:
    shutil.copy(HERE / "rules_test.yml", folder)
    done = tool(*words, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_a_rule_that_does_not_fire(folder: Path) -> None:
    shutil.copy(HERE / "rules_test.yml", folder)
    file = folder / "rules.yml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('reskit_drift_alarm{statistic="input"} == 1', "vector(0) == 1"))
    assert tool("promtool", "test", "rules", "rules_test.yml", folder=folder).returncode != 0


def test_promtool_can_read_every_expression(folder: Path) -> None:
    recorded = [{"record": f"x:{i}", "expr": text} for i, text in enumerate(expressions(folder))]
    (folder / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    done = tool("promtool", "check", "rules", "all.yml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=ReskitDown", "severity=critical"], "on-call"),
        (["alertname=ReskitInputDrift", "severity=warning"], "mail"),
        (["alertname=ReskitDriftUnwatched", "severity=info"], "nobody"),
    ],
)
def test_alerts_go_to_whom_they_should(folder: Path, labels: list[str], receiver: str) -> None:
    words = ("amtool", "config", "routes", "test", "--config.file", "alertmanager.yml", *labels)
    done = tool(*words, folder=folder)
    assert done.stdout.strip() == receiver, done.stderr


# Writing.


def test_what_is_there_is_left(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    (folder / "rules.yml").unlink()
    (folder / "prometheus.yml").write_text("mine")
    with pytest.raises(OutputError, match=r"prometheus\.yml is there already"):
        write_monitoring(folder)
    assert (folder / "prometheus.yml").read_text() == "mine"
    assert not (folder / "rules.yml").exists()  # all or nothing


def test_from_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    ran = cli("monitoring", "--out", tmp_path / "a", "--json")
    assert (ran.code, ran.err) == (0, "")
    paths = json.loads(ran.out)
    assert paths == {Path(name).stem: str(tmp_path / "a" / name) for name in FILES}
    assert all(Path(path).is_file() for path in paths.values())
    again = cli("monitoring", "--out", tmp_path / "a")
    assert (again.code, again.out) == (1, "")
    assert again.err.count("\n") == 1
    assert "rules" in cli("monitoring", "--out", tmp_path / "b").out
