"""Networks of Caffe."""

from reskit.weights.caffe.reader import claims, read_caffe

__all__ = ["claims", "read_caffe"]
