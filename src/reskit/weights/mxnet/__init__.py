"""Networks of MXNet."""

from reskit.weights.mxnet.reader import claims, read_mxnet

__all__ = ["claims", "read_mxnet"]
