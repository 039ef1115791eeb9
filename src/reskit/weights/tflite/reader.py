"""TensorFlow Lite models with floating-point weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reskit.errors import ReskitError, WeightsError
from reskit.files import sha256
from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.tflite.layers import LAYERS
from reskit.weights.tflite.network import Network

__all__ = ["claims", "read_tflite"]

_IDENTIFIER = b"TFL3"


def claims(sources: Sequence[str | Path]) -> bool:
    """Tell a TFLite file by its name or its identifier."""
    if len(sources) != 1:
        return False
    path = Path(sources[0])
    if path.suffix.lower() == ".tflite":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == _IDENTIFIER


def read_tflite(sources: Sequence[str | Path]) -> Checkpoint:
    """Read a TFLite file.

    Args:
        sources: one file.

    Raises:
        WeightsError: it is damaged, quantised, or of a network that reskit cannot read.
        MissingExtraError: the package `tflite` is not installed.
    """
    path = Path(sources[0])
    if len(sources) != 1 or not path.is_file():
        raise WeightsError(f"there is no TFLite file at {path}: give one .tflite file")
    try:
        content = path.read_bytes()
        if content[4:8] != _IDENTIFIER:
            raise WeightsError("it is no TFLite file, or not a whole one: fetch it again")
        network = Network(content)
        graph, preprocess = network.graph.finish_normalised(network.build(LAYERS))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except ReskitError:
        raise
    except Exception as error:  # a wrong offset can end in anything
        raise WeightsError(
            f"{path} is not a whole TFLite file ({type(error).__name__}): fetch it again"
        ) from error
    return Checkpoint(
        format="tflite",
        source=str(path),
        state=graph.weights,
        graph=graph,
        preprocess=preprocess,
        provenance={"sha256": sha256(path)},
        notes=network.graph.notes,
    )


READERS.add("tflite", Reader(claims=claims, read=read_tflite, files="model.tflite"))
