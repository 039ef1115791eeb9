"""What a service refuses, and how each protocol says so."""

from __future__ import annotations

from typing import ClassVar

from reskit.errors import ReskitError

__all__ = [
    "BadRequestError",
    "BusyError",
    "DeadlineError",
    "EngineError",
    "NotReadyError",
    "ServingError",
    "SlowBodyError",
    "TooLargeError",
    "UnauthorizedError",
    "UnknownModelError",
    "headers_of",
]


class ServingError(ReskitError):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        code: name of the status of gRPC.
        kind: what metrics count it as.
    """

    status: ClassVar[int] = 400
    code: ClassVar[str] = "INVALID_ARGUMENT"
    kind: ClassVar[str] = "bad_request"


class BadRequestError(ServingError):
    """The request makes no sense, or does not fit the model."""


class UnauthorizedError(ServingError):
    """No token, or one that is not known."""

    status, code, kind = 401, "UNAUTHENTICATED", "unauthorized"


class UnknownModelError(ServingError):
    """There is no such model, or no such version of it."""

    status, code, kind = 404, "NOT_FOUND", "unknown_model"


class SlowBodyError(ServingError):
    """The body did not arrive in time."""

    status, code, kind = 408, "DEADLINE_EXCEEDED", "slow_body"


class TooLargeError(ServingError):
    """The body or the image is larger than the service takes."""

    status, code, kind = 413, "INVALID_ARGUMENT", "too_large"


class EngineError(ServingError):
    """The network failed; only the batch it was computing is lost."""

    status, code, kind = 500, "INTERNAL", "engine"


class NotReadyError(ServingError):
    """The model is not loaded, or the service is stopping."""

    status, code, kind = 503, "UNAVAILABLE", "not_ready"


class BusyError(NotReadyError):
    """The queue is full.

    Args:
        message: what is full.
        retry_after: whole seconds after which to come again.
    """

    kind = "busy"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(f"{message}; come again in {retry_after} s")
        self.retry_after = retry_after


class DeadlineError(ServingError):
    """The answer did not come in time."""

    status, code, kind = 504, "DEADLINE_EXCEEDED", "deadline"


def headers_of(error: ServingError) -> dict[str, str]:
    """Return the headers of HTTP that go with an error."""
    headers = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (401, 408, 413):  # the rest of the body is not read
        headers["Connection"] = "close"
    return headers
