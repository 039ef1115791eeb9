"""Bundles as a service: REST and gRPC by the Open Inference Protocol, over one predictor.

`serve` runs it; `Server` is the same for programs that have an event loop.
"""

from reskit.errors import MissingExtraError

try:
    from reskit.serving.server import Server, serve
    from reskit.serving.settings import Settings
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package in ("", "reskit"):
        raise
    raise MissingExtraError(package, "serve") from None

__all__ = ["Server", "Settings", "serve"]
