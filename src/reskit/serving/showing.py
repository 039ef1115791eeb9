"""One answer of a model, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from reskit.attribution import explains, grad_cam
from reskit.errors import ModelError
from reskit.plots.attribution import warmed
from reskit.serving.models import Model
from reskit.serving.predictor import data_url, open_upload
from reskit.serving.service import Service

__all__ = ["shown"]

_SIDE = 512
_BARS = 8


async def shown(service: Service, name: str, upload: tuple[str, bytes], *, explain: bool) -> dict[str, Any]:
    """Ask a model and return what the template of an answer needs.

    Args:
        service: asked as by `/v1/predict`, with the same limits.
        name: of the model; may be empty where there is one only.
        upload: name and bytes of a file.
        explain: whether to say which places spoke for the answer, where the task is one of classes.

    Raises:
        ServingError: it is refused, or could not be answered.
    """
    filename, data = upload
    answer = await service.predict(name, "", [upload], pictures=True)
    model = service.models.get(answer["model"], answer["version"])
    (record,) = answer["predictions"]
    drawn: dict[str, str] = record.get("pictures", {})
    bars = _bars(record)
    words = {
        key: value for key, value in model.predictor.bundle.task.words(record).items() if key not in drawn
    }
    heading = f"{bars[0][0]}: {bars[0][1]:.1%}" if record.get("label") is not None else "Answer"
    pictures = [
        (key.replace("_", " ").capitalize(), url, f"{key.replace('_', ' ')} of {filename}")
        for key, url in drawn.items()
    ]
    async with model.used():
        seen, heat, trouble = await service.reading(_look, model, data, record if explain else None, service)
    pictures.insert(0, ("As the network sees it", seen, f"{filename}, scaled and cropped for the network"))
    if heat:
        said = f"{filename} in grey, the places that spoke for {record['label']} in colour"
        pictures.append((f"What speaks for {record['label']}", heat, said))
    return {
        "heading": heading,
        "bars": bars,
        "words": {} if record.get("label") is not None else words,
        "pictures": pictures,
        "trouble": trouble,
        "input": filename,
        **{key: answer[key] for key in ("milliseconds", "model", "version", "engine")},
    }


def _look(
    model: Model, data: bytes, record: Mapping[str, Any] | None, service: Service
) -> tuple[str, str, str]:
    """Return the image as the task reads it, where its answer was found, and why that is not known."""
    predictor = model.predictor
    image = predictor.read(open_upload(data, service.settings.max_pixels))
    pixels = image.numpy()
    seen = _small(pixels[:3].transpose(1, 2, 0) if len(pixels) >= 3 else pixels[0])
    if record is None or not explains(predictor.bundle):
        return seen, "", ""
    try:
        with service.explaining:
            heat = grad_cam(predictor.bundle, image, predictor.labels.index(record["label"]))
    except ModelError as error:
        return seen, "", str(error)
    return seen, _small(warmed(pixels, heat.numpy())), ""


def _small(pixels: np.ndarray) -> str:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((_SIDE, _SIDE))
    return data_url(picture)


def _bars(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return what has a share of the answer, the largest first."""
    if "top" in record:
        return [(item["label"], item["probability"]) for item in record["top"]]
    areas = [(area["label"], area["share"]) for area in record.get("areas", ())]
    return sorted(areas, key=lambda area: -area[1])[:_BARS]
