"""Keras models, read and written."""

from reskit.weights.keras.export import write_keras_h5
from reskit.weights.keras.reader import claims, read_keras

__all__ = ["claims", "read_keras", "write_keras_h5"]
