"""A graph as a Keras file."""

from reskit.weights.keras.export.file import write_keras_h5

__all__ = ["write_keras_h5"]
