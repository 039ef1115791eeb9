"""`reskit deploy` writes what platforms take, for the bundle that it is given, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import reskit
from reskit.bundle import Bundle
from reskit.data.texts import TextPreprocess
from reskit.deploying import deploy
from reskit.deploying.facts import TARGETS, Facts, Target
from reskit.deploying.image import dockerfile
from reskit.deploying.manifests import machine
from reskit.errors import BundleError, ConfigError, OutputError
from reskit.tasks import TASKS

COMMON = {"Dockerfile", ".dockerignore", "README.md", "wheels/README.txt"} | {
    f"bundle/{name}"
    for name in (
        "README.md",
        "config.json",
        "drift.safetensors",
        "model.safetensors",
        "samples.safetensors",
    )
}
MANIFESTS = {
    "kserve": {"inferenceservice.yaml"},
    "sagemaker": {"create-model.json", "create-endpoint-config.json", "create-endpoint.json"},
    "vertex": {"upload-model.json"},
    "azureml": {"endpoint.yml", "deployment.yml"},
}
IMAGE = "registry.test:5000/team/digits:7"


@pytest.fixture(scope="module")
def bundle(digits_run: Any) -> Path:
    found: Path = digits_run.bundle
    return found


@pytest.fixture(scope="module")
def written(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each platform."""
    root = tmp_path_factory.mktemp("deploy")
    for to in TARGETS:
        deploy(bundle, to=to, out=root / to, name="digits", image=IMAGE)
    return {to: root / to for to in TARGETS}


def facts(bundle: Path, to: Target, **changes: Any) -> Facts:
    return replace(Facts.of(reskit.load(bundle), to, "digits", None), **changes)


def document(folder: Path, name: str) -> Any:
    return yaml.safe_load((folder / name).read_text(encoding="utf-8"))  # JSON is YAML


@pytest.mark.parametrize("to", TARGETS)
def test_all_is_there_and_nothing_else(written: dict[str, Path], bundle: Path, to: str) -> None:
    files = {str(path.relative_to(written[to])) for path in written[to].rglob("*") if path.is_file()}
    assert files == COMMON | MANIFESTS[to]
    assert reskit.load(written[to] / "bundle").config == reskit.load(bundle).config


@pytest.mark.parametrize("to", TARGETS)
def test_the_image_runs_as_nobody_in_particular(written: dict[str, Path], to: str) -> None:
    text = (written[to] / "Dockerfile").read_text(encoding="utf-8")
    last = text[text.rindex("\nFROM ") :]
    words = [line.split(maxsplit=1) for line in last.strip().splitlines() if line[0] != " "]
    steps = dict(words)
    assert steps["FROM"] == "python:3.12-slim"
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", steps["USER"])
    assert [word for word, _ in words].index("USER") > max(
        place for place, (word, _) in enumerate(words) if word in ("RUN", "COPY")
    )
    assert "HEALTHCHECK" in steps
    assert "COPY bundle/ /models/digits/\n" in text
    assert not re.search(r"(?i)^ADD|secret|password|token|--chown", text, re.M)
    assert (written[to] / ".dockerignore").read_text(encoding="utf-8").split() == ["*", "!bundle", "!wheels"]


def test_the_container_user_may_read_the_bundle(bundle: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        done = deploy(bundle, to="kserve", out=tmp_path / "out", name="digits")
    finally:
        os.umask(before)
    assert (done.folder / "bundle").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in (done.folder / "bundle").iterdir()} == {0o644}


def test_kserve_gets_what_kubernetes_takes(written: dict[str, Path]) -> None:
    service = document(written["kserve"], "inferenceservice.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert service.keys() == {"apiVersion", "kind", "metadata", "spec"}
    predictor = service["spec"].pop("predictor")
    assert service["spec"] == {}
    own = {key: predictor.pop(key) for key in ("minReplicas", "maxReplicas", "timeout")}
    assert all(isinstance(value, int) for value in own.values())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": predictor}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"  # the one that KServe routes to
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    assert container["image"] == IMAGE
    secure = container["securityContext"]
    assert secure["runAsNonRoot"]
    assert secure["readOnlyRootFilesystem"]
    assert not secure["allowPrivilegeEscalation"]
    assert f"USER {secure['runAsUser']}:{secure['runAsGroup']}\n" in (
        written["kserve"] / "Dockerfile"
    ).read_text(encoding="utf-8")
    container["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_sagemakers_documents_name_each_other(written: dict[str, Path]) -> None:
    model, config, endpoint = (
        document(written["sagemaker"], f"create-{name}.json")
        for name in ("model", "endpoint-config", "endpoint")
    )
    (variant,) = config["ProductionVariants"]
    assert model["PrimaryContainer"]["Image"] == IMAGE
    assert variant["ModelName"] == model["ModelName"]
    assert endpoint == {"EndpointName": "digits", "EndpointConfigName": config["EndpointConfigName"]}
    assert variant["InstanceType"] == "ml.m5.large"
    for name in (model["ModelName"], config["EndpointConfigName"]):
        assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name)
    readme = (written["sagemaker"] / "README.md").read_text(encoding="utf-8")
    assert f"delete-model --model-name {model['ModelName']}" in readme
    assert "--password-stdin registry.test:5000\n" in readme
    assert "--repository-name team/digits\n" in readme


@pytest.mark.parametrize(
    ("to", "name", "field", "routes"),
    [
        ("vertex", "upload-model.json", ("model", "containerSpec"), {"healthRoute", "predictRoute"}),
        (
            "azureml",
            "deployment.yml",
            ("environment", "inference_config"),
            {"liveness_route", "readiness_route", "scoring_route"},
        ),
    ],
)
def test_routes_are_those_that_the_service_answers_at(
    written: dict[str, Path], bundle: Path, to: Any, name: str, field: tuple[str, str], routes: set[str]
) -> None:
    from reskit.serving import Settings
    from reskit.serving.platforms.environment import Platform
    from reskit.serving.rest import make_app
    from reskit.serving.service import Service

    part = document(written[to], name)[field[0]][field[1]]
    said = {
        key: value["path"] if isinstance(value, dict) else value
        for key, value in part.items()
        if key in routes
    }
    assert said.keys() == routes
    platform = Platform(name=to)
    if to == "vertex":
        platform = Platform.read(
            "vertex", {"AIP_HEALTH_ROUTE": said["healthRoute"], "AIP_PREDICT_ROUTE": said["predictRoute"]}
        )
    service = Service([(None, bundle)], Settings(platform=platform))
    known = make_app(service).openapi()["paths"]
    for key, path in said.items():
        asked = "post" if key in ("predictRoute", "scoring_route") else "get"
        assert asked in known[path], path


def test_azuremls_documents_name_each_other(written: dict[str, Path]) -> None:
    endpoint, deployment = (
        document(written["azureml"], f"{name}.yml") for name in ("endpoint", "deployment")
    )
    assert deployment["endpoint_name"] == endpoint["name"] == "digits"
    assert deployment["environment"]["image"] == IMAGE
    assert isinstance(deployment["environment"]["version"], str)


@pytest.mark.parametrize("to", TARGETS)
def test_the_commands_are_shell(written: dict[str, Path], to: str) -> None:
    readme = (written[to] / "README.md").read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```$", readme, re.M | re.S))
    checked = subprocess.run(["bash", "-n"], input=commands, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "uint8 (N, 1, 8, 8)" in readme
    assert f"IMAGE={IMAGE}\n" in readme
    for name in MANIFESTS[to]:
        assert f"| `{name}` |" in readme
        assert name in commands
    assert not re.search(r"\{\w+\}(?!')", readme.replace("{.status", ""))


@pytest.mark.parametrize("to", TARGETS)
def test_the_commands_send_what_the_bundle_takes(tmp_path: Path, to: Target) -> None:
    task = TASKS.get("text")(preprocess=TextPreprocess.learned(["a b c"], unit="word"), labels=["no", "yes"])
    Bundle.write(
        tmp_path / "words",
        task=task,
        model=reskit.create_model("text_resnet8", in_channels=task.preprocess.channels, width=[8, 8, 8]),
        metrics={},
        provenance={},
        samples=task.read("a b")[None],
    )
    deploy(tmp_path / "words", to=to, out=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "text.txt" in text
    assert "image.png" not in text
    if to == "kserve":
        assert '"name": "tokens", "shape": [1, 8], "datatype": "INT32"' in text


def test_what_reads_recordings_is_in_the_image(bundle: Path) -> None:
    assert 'RESKIT="reskit[serve]==' in dockerfile(facts(bundle, "kserve"), "kserve")
    assert 'RESKIT="reskit[serve,audio]==' in dockerfile(facts(bundle, "kserve", extras=("audio",)), "kserve")


def test_larger_networks_get_more_memory_and_larger_machines(bundle: Path) -> None:
    small = facts(bundle, "sagemaker")
    assert small.memory_mib == 1024
    assert machine(small, "sagemaker") == "ml.m5.large"
    large = replace(small, memory_mib=5000)
    assert [machine(large, to) for to in ("sagemaker", "vertex", "azureml")] == [
        "ml.m5.xlarge",
        "n1-standard-4",
        "Standard_DS3_v2",
    ]
    assert machine(replace(small, memory_mib=10**6), "vertex") == "n1-standard-16"


@pytest.mark.parametrize(
    ("image", "registry", "repository"),
    [
        ("digits", "", "digits"),
        ("digits:1", "", "digits"),
        ("team/digits:1", "", "team/digits"),
        ("a.b/c/d:1", "a.b", "c/d"),
        ("a.b:5000/d@sha256:00", "a.b:5000", "d"),
    ],
)
def test_an_image_has_registry_and_repository(
    bundle: Path, image: str, registry: str, repository: str
) -> None:
    found = facts(bundle, "kserve", image=image)
    assert (found.registry, found.repository) == (registry, repository)


def test_an_example_is_said_to_be_one(bundle: Path, tmp_path: Path) -> None:
    done = deploy(bundle, to="vertex", out=tmp_path / "out", name="digits")
    assert done.facts.made_up
    assert "No image was named" in (done.folder / "README.md").read_text(encoding="utf-8")
    assert done.facts.image in (done.folder / "upload-model.json").read_text(encoding="utf-8")


def test_nothing_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for out in (tmp_path, tmp_path / "mine"):
        with pytest.raises(OutputError, match="nothing in it is overwritten"):
            deploy(bundle, to="kserve", out=out, name="digits")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert deploy(bundle, to="kserve", out=tmp_path / "empty", name="digits").files


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": "My Model"}, ConfigError, "'My Model' cannot be a name"),
        ({"name": "a--b"}, ConfigError, "'a--b' cannot be a name"),
        ({"name": "x" * 33}, ConfigError, "cannot be a name"),
        ({"name": "$(id)"}, ConfigError, "cannot be a name"),
        ({"image": "a b; rm"}, ConfigError, "is not REGISTRY/NAME:TAG"),
        ({"to": "heroku"}, ConfigError, "unknown platform 'heroku'; known: kserve"),
        ({"bundle": "nowhere"}, BundleError, "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    arguments: dict[str, Any] = {"bundle": bundle, "to": "kserve", "name": "digits", **changes}
    with pytest.raises(error, match=re.escape(words)):
        deploy(arguments.pop("bundle"), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_only_a_bundles_own_files_are_taken(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "digits")
    (tmp_path / "digits" / "engines").mkdir()
    (tmp_path / "digits" / "engines" / "plan.json").write_text("{}")
    (tmp_path / "digits" / ".env").write_text("KEY=1")
    done = deploy(tmp_path / "digits", to="kserve", out=tmp_path / "out")
    assert set(done.files) == COMMON | MANIFESTS["kserve"]
    assert {path.name for path in (tmp_path / "out" / "bundle").iterdir()} == {
        "README.md",
        "config.json",
        "drift.safetensors",
        "model.safetensors",
        "samples.safetensors",
    }


# The command


def test_the_command_says_what_it_wrote(cli: Callable[..., Any], bundle: Path, tmp_path: Path) -> None:
    words = ("deploy", "--to", "azureml", "--bundle", bundle, "--name", "digits")
    plain = cli(*words, "--out", tmp_path / "a")
    assert plain.code == 0
    assert str(tmp_path / "a" / "deployment.yml") in plain.out.splitlines()
    assert "is an example" in plain.err
    told = json.loads(cli(*words, "--out", tmp_path / "b", "--image", IMAGE, "--json").out)
    assert (told["to"], told["name"], told["image"]) == ("azureml", "digits", IMAGE)
    again = cli(*words, "--out", tmp_path / "a")
    assert (again.code, again.out) == (1, "")
    assert again.err.count("\n") == 1


def test_options_that_are_missing_are_named(cli: Callable[..., Any]) -> None:
    ran = cli("deploy", "--to", "kserve")
    assert ran.code == 2
    assert "--bundle, --out" in ran.err
