"""What SageMaker wants to be told of a multi-model endpoint's models."""

from __future__ import annotations

from reskit.serving.faults import ServingError

__all__ = ["AlreadyLoadedError", "NoMemoryError", "NotLoadedError"]


class AlreadyLoadedError(ServingError):
    """A model of the name is loaded: SageMaker goes on with it."""

    status, code, kind = 409, "ALREADY_EXISTS", "already_loaded"


class NoMemoryError(ServingError):
    """There is too little memory to load a model: SageMaker unloads others and tries again."""

    status, code, kind = 507, "RESOURCE_EXHAUSTED", "no_memory"


class NotLoadedError(ServingError):
    """No model of the name is loaded: SageMaker loads it and asks again."""

    status, code, kind = 404, "NOT_FOUND", "unknown_model"
