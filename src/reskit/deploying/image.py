"""The container image: what it is built from, and what runs in it."""

from __future__ import annotations

import json

import reskit
from reskit.deploying.facts import PORT, USER, Facts, Target

__all__ = ["BUNDLE", "WHEELS", "dockerfile", "dockerignore", "wheels_note"]

BUNDLE, WHEELS = "bundle", "wheels"
"""Folders beside the Dockerfile."""

_ROUTES: dict[Target, str] = {
    "kserve": "",
    "sagemaker": " --platform sagemaker",
    "vertex": " --platform vertex",
    "azureml": " --platform azureml",
}
_PORTS: dict[Target, str] = {
    "sagemaker": f"${{SAGEMAKER_BIND_TO_PORT:-{PORT}}}",
    "vertex": f"${{AIP_HTTP_PORT:-{PORT}}}",
}
_LABELS: dict[Target, str] = {
    "sagemaker": (
        "LABEL com.amazonaws.sagemaker.capabilities.multi-models=true\n"
        "LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true\n"
    ),
}

_DOCKERFILE = """\
FROM python:3.12-slim AS build
ARG RESKIT="reskit[{extras}]=={version}"
ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"
COPY {wheels}/ /wheels/
RUN python -m venv /opt/reskit \\
 && /opt/reskit/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision \\
 && /opt/reskit/bin/pip install --no-cache-dir --find-links /wheels "$RESKIT"

FROM python:3.12-slim
RUN useradd --system --uid {user} --no-create-home --shell /usr/sbin/nologin reskit
COPY --from=build /opt/reskit /opt/reskit
COPY {bundle}/ /models/{name}/
ENV PATH="/opt/reskit/bin:$PATH" HOME=/tmp MPLCONFIGDIR=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
{labels}USER {user}:{user}
EXPOSE {port}
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \\
  CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:{asked}/v2/health/ready', timeout=3)"
ENTRYPOINT {entrypoint}
"""


def dockerfile(facts: Facts, to: Target) -> str:
    """Return the Dockerfile: two stages, a user without rights, nothing written outside of /tmp."""
    # A shell, so that models come from the environment and a platform's argument (`serve`, of SageMaker) goes
    # nowhere; it makes way for reskit, which so gets the signals.
    command = (
        f'exec reskit serve "${{RESKIT_MODELS:-{facts.name}=/models/{facts.name}}}" --host 0.0.0.0 '
        f"--port {PORT} --no-grpc --drain 5 --grace 20{_ROUTES[to]}"
    )
    return _DOCKERFILE.format(
        version=reskit.__version__,
        extras=",".join(("serve", *facts.extras)),
        wheels=WHEELS,
        bundle=BUNDLE,
        user=USER,
        name=facts.name,
        labels=_LABELS.get(to, ""),
        port=PORT,
        asked=_PORTS.get(to, str(PORT)),
        entrypoint=json.dumps(["/bin/sh", "-c", command]),
    )


def dockerignore() -> str:
    """Return what keeps all but the bundle and the wheels out of the image: no secret gets in by chance."""
    return f"*\n!{BUNDLE}\n!{WHEELS}\n"


def wheels_note() -> str:
    """Return what stands in the folder of wheels, which the build needs though it be empty."""
    return (
        "Wheels in this folder are there for pip when the image is built: a reskit of your own, or all that\n"
        "is needed where there is no network.\n"
    )
