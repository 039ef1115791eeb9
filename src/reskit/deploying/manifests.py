"""What each platform is told: the documents that make an endpoint of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from reskit.deploying.facts import PORT, USER, Facts, Target
from reskit.files import to_json

__all__ = ["MACHINES", "machine", "manifests"]

_READY, _LIVE = "/v2/health/ready", "/v2/health/live"

MACHINES: dict[str, tuple[tuple[int, str], ...]] = {
    "sagemaker": ((8, "ml.m5.large"), (16, "ml.m5.xlarge"), (32, "ml.m5.2xlarge"), (64, "ml.m5.4xlarge")),
    "vertex": ((7, "n1-standard-2"), (15, "n1-standard-4"), (30, "n1-standard-8"), (60, "n1-standard-16")),
    "azureml": (
        (7, "Standard_DS2_v2"),
        (14, "Standard_DS3_v2"),
        (28, "Standard_DS4_v2"),
        (56, "Standard_DS5_v2"),
    ),
}
"""GiB of memory and names of machines, by platform; smallest first."""


def machine(facts: Facts, to: Target) -> str:
    """Return the smallest machine of a platform that gives the model half of its memory; else the largest."""
    fits = (name for gib, name in MACHINES[to] if facts.memory_mib <= gib * 512)
    return next(fits, MACHINES[to][-1][1])


def manifests(facts: Facts, to: Target) -> dict[str, str]:
    """Return the platform's documents by name of their files."""
    makers: dict[Target, Callable[[Facts], dict[str, str]]] = {
        "kserve": _kserve,
        "sagemaker": _sagemaker,
        "vertex": _vertex,
        "azureml": _azureml,
    }
    return makers[to](facts)


def _kserve(facts: Facts) -> dict[str, str]:
    def probe(path: str, **more: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": PORT}, "timeoutSeconds": 3, **more}

    container = {
        "name": "kserve-container",
        "image": facts.image,
        "env": [{"name": "PROTOCOL", "value": "v2"}],
        "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": probe(_READY, periodSeconds=2, failureThreshold=90),
        "readinessProbe": probe(_READY, periodSeconds=5, failureThreshold=2),
        "livenessProbe": probe(_LIVE, periodSeconds=10, failureThreshold=3),
        "resources": {
            "requests": {"cpu": "1", "memory": f"{facts.memory_mib}Mi"},
            "limits": {"cpu": "2", "memory": f"{2 * facts.memory_mib}Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsGroup": USER,
            "runAsNonRoot": True,
            "runAsUser": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": facts.name,
            "labels": {"app.kubernetes.io/name": facts.name, "app.kubernetes.io/managed-by": "reskit"},
            "annotations": {"reskit/bundle-sha256": facts.checksum},
        },
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": 3,
                "timeout": 60,
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 30,
                "containers": [container],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    }
    return {"inferenceservice.yaml": _yaml(service)}


def _sagemaker(facts: Facts) -> dict[str, str]:
    configured = f"{facts.name}-{facts.checksum[:8]}"
    model = {
        "ModelName": configured,
        "PrimaryContainer": {"Image": facts.image, "Mode": "SingleModel", "Environment": {}},
        "EnableNetworkIsolation": True,
    }
    config = {
        "EndpointConfigName": configured,
        "ProductionVariants": [
            {
                "VariantName": "primary",
                "ModelName": configured,
                "InitialInstanceCount": 1,
                "InstanceType": machine(facts, "sagemaker"),
                "InitialVariantWeight": 1.0,
                "ContainerStartupHealthCheckTimeoutInSeconds": 300,
            }
        ],
    }
    endpoint = {"EndpointName": facts.name, "EndpointConfigName": configured}
    return {
        "create-model.json": to_json(model),
        "create-endpoint-config.json": to_json(config),
        "create-endpoint.json": to_json(endpoint),
    }


def _vertex(facts: Facts) -> dict[str, str]:
    model = {
        "model": {
            "displayName": facts.name,
            "description": f"{facts.architecture} for {facts.task}, bundle {facts.checksum}",
            "labels": {"bundle": facts.checksum[:12]},
            "containerSpec": {
                "imageUri": facts.image,
                "ports": [{"containerPort": PORT}],
                "healthRoute": "/health",
                "predictRoute": "/predict",
                "deploymentTimeout": "1200s",
            },
        }
    }
    return {"upload-model.json": to_json(model)}


def _azureml(facts: Facts) -> dict[str, str]:
    def route(path: str) -> dict[str, Any]:
        return {"port": PORT, "path": path}

    def probe(failures: int) -> dict[str, int]:
        return {
            "initial_delay": 10,
            "period": 10,
            "timeout": 3,
            "success_threshold": 1,
            "failure_threshold": failures,
        }

    schemas = "https://azuremlschemas.azureedge.net/latest"
    endpoint = {
        "$schema": f"{schemas}/managedOnlineEndpoint.schema.json",
        "name": facts.name,
        "auth_mode": "key",
    }
    deployment = {
        "$schema": f"{schemas}/managedOnlineDeployment.schema.json",
        "name": "blue",
        "endpoint_name": facts.name,
        "environment": {
            "name": facts.name,
            "version": f"sha-{facts.checksum[:12]}",  # else digits around an e would be a number
            "image": facts.image,
            "inference_config": {
                "liveness_route": route(_LIVE),
                "readiness_route": route(_READY),
                "scoring_route": route("/score"),
            },
        },
        "instance_type": machine(facts, "azureml"),
        "instance_count": 1,
        "request_settings": {"request_timeout_ms": 30000, "max_concurrent_requests_per_instance": 64},
        "liveness_probe": probe(30),
        "readiness_probe": probe(30),
    }
    return {"endpoint.yml": _yaml(endpoint), "deployment.yml": _yaml(deployment)}


def _yaml(document: dict[str, Any]) -> str:
    return str(yaml.safe_dump(document, sort_keys=False, width=110))
