"""TensorFlow Lite models."""

from reskit.weights.tflite.reader import claims, read_tflite

__all__ = ["claims", "read_tflite"]
