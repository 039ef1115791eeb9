"""The documentation: its code runs, its links lead somewhere, and its tables say what the code says."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import reskit
from reskit.cli import app, main
from reskit.config import Recipe
from reskit.recipes import list_recipes, load_recipe

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
EVERY_VERB = {"--json", "--debug"}
NOT_RUN = {"sh", "text", "json", "toml", "mermaid"}


class Block(NamedTuple):
    """A fenced block: where its first line is, its language and its text."""

    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    source = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)^```$", source, re.M):
        yield Block(source.count("\n", 0, match.start(2)) + 1, match[1].strip(), match[2])


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*\n(?:.*\n)*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M)


def section(page: str, heading: str) -> str:
    """Return what stands under a second-level heading of a page of docs."""
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", prose(ROOT / "docs" / page), re.M | re.S
    )
    assert found is not None, f"docs/{page} has no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the table rows in Markdown whose first cell is code."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def code(text: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


# What runs


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave pictures empty: drawing them takes longer than all else, and their tests are elsewhere."""
    from matplotlib.figure import Figure

    patch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the embedded digits."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    settings = ("training.epochs=1", "runtime.precision=fp32", "runtime.layout=nchw")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        reskit.train("digits-resnet8", out=folder, overrides=settings)
    return folder


@pytest.fixture
def workplace(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a page's code runs in, with `photos/` and `bundle/`; models it registers are forgotten."""
    import datasets
    import torch

    from reskit.models import MODELS

    rng = np.random.default_rng(0)
    for name, brightness in (("cat", 60), ("dog", 180)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(brightness - 40, brightness + 40, (36 + i, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{name}{i}.jpg")
    shutil.copytree(run_folder / "bundle", tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(MODELS, "_items", dict(MODELS._items))
    draw_nothing(monkeypatch)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    runnable = [block for block in blocks(page) if block.language not in NOT_RUN]
    if not runnable:
        return
    request.getfixturevalue("workplace")
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in runnable:
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        elif block.language == "console":
            for command in commands(block.text, where):
                run(command, where, monkeypatch)
        elif block.language == "yaml":
            first = block.text.splitlines()[0]
            assert first.startswith("# file: "), f"{where}: begin a yaml block with `# file: NAME`"
            Path(first.removeprefix("# file: ")).write_text(block.text, encoding="utf-8")
        else:
            pytest.fail(f"{where}: a block is python, console, yaml or {', '.join(sorted(NOT_RUN))}")


def commands(text: str, where: str) -> list[list[str]]:
    """Return the words of each `$ reskit ...` line; what needs a shell belongs into an sh block."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [shlex.split(line[1:], comments=True) for line in lines if line.startswith("$")]
    for words in found:
        simple = words[0] == "reskit" and not {"|", ">", "<", "&&", ";"} & set(words)
        assert simple, f"{where}: {shlex.join(words)} is not one reskit command: use an sh block"
    assert found, f"{where}: no line begins with `$`"
    return found


def run(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, f"{where}: {shlex.join(words)}: {end.value.code}"


# Where links lead


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
            assert anchor in slugs, f"{page.name} links to {link}"


def test_index_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", prose(ROOT / "docs" / "index.md")))
    assert linked == {page.name for page in DOCS} - {"index.md"}


# What the tables say


def recipe_keys(part: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from recipe_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def choices(annotation: Any) -> set[str]:
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {choice for part in get_args(annotation) for choice in choices(part)}


def test_every_recipe_key_is_documented_with_its_default() -> None:
    documented = {
        code(key)[0]: (default, meaning) for key, default, meaning in rows(section("training.md", "Keys"))
    }
    known = dict(recipe_keys())
    assert set(documented) == set(known)
    for key, (default, meaning) in documented.items():
        field = known[key]
        if field.is_required():
            assert default == "required", key
        elif field.default is None:
            assert default == "none", key
        else:
            value = yaml.safe_load(default.strip("`").replace("3/4, 4/3", f"{3 / 4}, {4 / 3}"))
            actual = field.get_default(call_default_factory=True)
            assert value == (list(actual) if isinstance(actual, tuple) else actual), key
        assert choices(field.annotation) <= set(code(meaning)), key


def test_every_recipe_is_documented_with_its_network() -> None:
    documented = {
        code(name)[0]: (code(network)[0], int(epochs))
        for name, network, epochs, _ in rows(section("training.md", "Recipes"))
    }
    recipes = {name: load_recipe(name) for name in list_recipes()}
    assert documented == {
        name: (recipe.model.name, recipe.training.epochs) for name, recipe in recipes.items()
    }


def test_every_schedule_is_documented() -> None:
    documented = {code(row[0])[0] for row in rows(section("training.md", "Schedules"))}
    assert documented == choices(dict(recipe_keys())["training.schedule.name"].annotation)


def leaves(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the commands of a group and of the groups in it; a group that takes options is one too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{before}{name} ")
        if not hasattr(command, "commands") or command.params:
            yield f"{before}{name}", command


def test_every_verb_and_option_is_documented() -> None:
    verbs = dict(leaves(typer.main.get_command(app)))
    listed = set(re.findall(r"\[`([\w ]+)`\]\(#reskit-[\w-]+\)", prose(ROOT / "docs" / "cli.md")))
    assert listed == set(verbs)
    for verb, command in verbs.items():
        text = section("cli.md", f"reskit {verb}")
        options = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        options = {option for option in options if option.startswith("--")}
        assert options >= EVERY_VERB, verb
        documented = {word.split()[0] for row in rows(text) for word in code(row[0]) if word.startswith("--")}
        assert documented == options - EVERY_VERB, verb
        usage = code(text)[0]
        arguments = [
            parameter.name.upper() for parameter in command.params if parameter.param_type_name == "argument"
        ]
        assert re.findall(r"[A-Z]+", usage) == arguments, verb


def test_every_model_is_documented_with_its_parameters() -> None:
    from reskit.models import MODELS

    documented = {
        code(name)[0]: (count, paper) for name, count, paper in rows(section("models.md", "Families"))
    }
    assert set(documented) == set(MODELS)
    for name, (count, paper) in documented.items():
        entry = MODELS.get(name)
        assert count == f"{entry.parameters:,}", name
        assert entry.paper.split(", arXiv:")[0] in paper, name
        assert f"https://arxiv.org/abs/{entry.paper.rsplit('arXiv:', 1)[1]}" in paper, name


def test_every_model_option_is_documented() -> None:
    from reskit.models import MODELS, create_model

    documented = {word for row in rows(section("models.md", "Options")) for word in code(row[0])}
    assert documented == {option for name in MODELS for option in MODELS.get(name).options}
    arguments = {word for row in rows(prose(ROOT / "docs" / "models.md")) for word in code(row[0])}
    assert set(inspect.signature(create_model).parameters) - {"architecture"} <= arguments


def test_every_block_and_shortcut_is_documented() -> None:
    import reskit.nn as rnn

    page = prose(ROOT / "docs" / "residual-learning.md")
    members = {name: getattr(rnn, name) for name in rnn.__all__}
    for name, member in members.items():
        if isinstance(member, type) and issubclass(member, rnn.Residual):
            assert f"`{name}`" in page, name
    options = {code(row[0])[0] for row in rows(section("residual-learning.md", "Blocks"))}
    assert set(rnn.BlockOptions.__annotations__) <= options
    assert {code(row[0])[0] for row in rows(section("residual-learning.md", "Shortcuts"))} == set(
        get_args(rnn.ShortcutKind)
    )


def test_every_kind_of_source_and_every_usual_column_is_documented() -> None:
    from reskit.data import SOURCES
    from reskit.data.column import IMAGES
    from reskit.data.kinds.base import IMAGE_SUFFIXES
    from reskit.data.labels import _LABEL_NAMES
    from reskit.data.texts import TEXT_COLUMNS

    text = prose(ROOT / "docs" / "data.md")
    kinds = re.findall(r"^\| \[`(\w+)`\]", text, re.M)
    assert kinds == sorted(SOURCES, key=lambda name: SOURCES.get(name).order)
    image, label = (code(line) for line in re.findall(r"^\| (?:image|label) \| (.*)$", text, re.M))
    assert (tuple(image), tuple(label)) == (IMAGES.names, _LABEL_NAMES)
    assert {suffix[1:] for suffix in IMAGE_SUFFIXES} <= set(code(section("data.md", "Image folders")))
    assert set(TEXT_COLUMNS) <= set(code(section("text.md", "Data")))


@pytest.mark.parametrize(("page", "task"), [("text", "text"), ("tables", "tabular"), ("audio", "audio")])
def test_every_setting_of_a_task_is_documented_with_its_default(page: str, task: str) -> None:
    from reskit.tasks import TASKS

    documented = {
        code(row[0])[0]: row[1] for row in rows(prose(ROOT / "docs" / f"{page}.md")) if len(row) == 3
    }
    fields = TASKS.get(task).Settings.model_fields
    for name, field in fields.items():
        default = json.loads(json.dumps(field.default))
        shown = (
            "none" if default is None else f"`{default if isinstance(default, str) else json.dumps(default)}`"
        )
        assert documented[name] == shown, name


def test_every_metric_of_tables_is_documented() -> None:
    from reskit.tasks import TASKS
    from reskit.tasks.labelled import Labelled

    own = TASKS.get("tabular").meanings.keys() - Labelled.meanings.keys()
    assert own == {code(row[0])[0] for row in rows(section("tables.md", "Metrics"))}


def test_every_metric_is_documented(run_folder: Path) -> None:
    metrics = set(reskit.load(run_folder / "bundle").config.metrics["test"])
    text = section("evaluate-and-predict.md", "Evaluation")
    assert metrics <= {code(row[0])[0] for row in rows(text)}
    assert {path.name for path in (run_folder / "evaluation").iterdir()} <= set(code(text))


def test_every_file_of_a_run_and_of_a_bundle_is_documented(run_folder: Path) -> None:
    text = section("training.md", "The run folder")
    documented = {word.rstrip("/") for word in code(text)}
    assert {path.name for path in run_folder.iterdir()} <= documented
    columns = (run_folder / "log.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {name for name in columns if not name.startswith("test_")} <= documented

    page = prose(ROOT / "docs" / "bundle.md")
    assert {path.name for path in (run_folder / "bundle").iterdir()} == {
        code(row[0])[0] for row in rows(page.split("## ")[0])
    }
    fields = set(code(section("bundle.md", "config.json")))
    config = reskit.load(run_folder / "bundle").config.model_dump()
    assert {name for name in config if name not in ("task", "provenance")} <= fields
    for part in ("task", "provenance"):
        for name in config[part]:
            assert f"{part}.{name}" in fields or name in fields, f"{part}.{name}"


def test_public_names_are_documented() -> None:
    documented = set(code(prose(ROOT / "docs" / "quickstart.md")))
    assert {f"reskit.{name}" for name in reskit.__all__ if not name.startswith("__")} <= documented


def test_import_rules_are_documented_as_they_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [rule for rule in settings["tool"]["importlinter"]["contracts"] if rule["type"] == "layers"]
    layers = "\n".join(layer.replace("reskit.", "") for layer in contract["layers"])
    assert layers + "\n" in [block.text for block in blocks(ROOT / "docs" / "architecture.md")]
