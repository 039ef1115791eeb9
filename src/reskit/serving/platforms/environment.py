"""Which platform runs this container, and what its environment says: port and routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field

from reskit.errors import ConfigError

__all__ = ["NAMES", "Platform", "PlatformName", "from_environment"]

PlatformName = Literal["sagemaker", "vertex", "azureml"]
NAMES: tuple[PlatformName, ...] = get_args(PlatformName)

_SIGNS: dict[str, PlatformName] = {
    "AIP_HTTP_PORT": "vertex",
    "SAGEMAKER_BIND_TO_PORT": "sagemaker",
    "SAGEMAKER_MULTI_MODEL": "sagemaker",
    "AZUREML_MODEL_DIR": "azureml",
}
"""Variables of which each tells the platform that sets it."""
_PORTS = {"vertex": "AIP_HTTP_PORT", "sagemaker": "SAGEMAKER_BIND_TO_PORT"}
_ROUTE = re.compile(r"/[\w.:~/-]*")


class Platform(BaseModel):
    """A platform and what it may say of its routes.

    Attributes:
        name: of the platform.
        health_route: where Vertex AI asks for health.
        predict_route: where Vertex AI asks for predictions.
        deployed_model_id: what Vertex AI calls the model; put into answers when there.
        multi_model: whether SageMaker says which models of the folders are loaded, and when.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PlatformName
    health_route: str = Field("/health", pattern=rf"^{_ROUTE.pattern}$")
    predict_route: str = Field("/predict", pattern=rf"^{_ROUTE.pattern}$")
    deployed_model_id: str | None = None
    multi_model: bool = False

    @classmethod
    def read(cls, name: PlatformName, variables: Mapping[str, str]) -> Self:
        """Return a platform with what its variables say.

        Raises:
            ConfigError: a route is none, or both are one.
        """
        said: dict[str, Any] = {}
        if name == "sagemaker":
            said["multi_model"] = variables.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true"
        if name == "vertex":
            routes = {"health_route": "AIP_HEALTH_ROUTE", "predict_route": "AIP_PREDICT_ROUTE"}
            for field, variable in routes.items():
                if route := variables.get(variable):
                    if not _ROUTE.fullmatch(route):
                        raise ConfigError(f"{variable} is {route[:80]!r}, expected a path such as /predict")
                    said[field] = route
            said["deployed_model_id"] = variables.get("AIP_DEPLOYED_MODEL_ID") or None
        return cls(name=name, **said)


def from_environment(name: PlatformName | None, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that a platform's environment makes: `platform`, and `port` where it says one.

    Args:
        name: the platform; told from the variables when absent.
        variables: the environment.

    Raises:
        ConfigError: the platform is unknown, or a variable makes no sense.
    """
    found = name or next((platform for sign, platform in _SIGNS.items() if variables.get(sign)), None)
    if found is None:
        return {}
    if found not in NAMES:
        raise ConfigError(f"unknown platform {str(found)[:80]!r}; known: {', '.join(NAMES)}")
    settings: dict[str, Any] = {"platform": Platform.read(found, variables)}
    variable = _PORTS.get(found, "")
    if port := variables.get(variable):
        if not port.isdecimal() or not 0 < int(port[:9]) < 65536:
            raise ConfigError(f"{variable} is {port[:80]!r}, expected the number of a port")
        settings["port"] = int(port)
    return settings
