"""One answer of a model, as the page shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

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
    labelled = record.get("label") is not None
    pictures = [
        (key.replace("_", " ").capitalize(), url, f"{key.replace('_', ' ')} of {filename}")
        for key, url in drawn.items()
    ]
    most = service.settings.max_pixels
    heat = trouble = ""
    async with model.used():
        seen = await service.reading(_seen, model, data, most)
        if explain and explains(model.predictor.bundle):
            try:
                async with asyncio.timeout(service.settings.timeout_s), service.explaining:
                    heat = await service.reading(_heated, model, data, most, record["label"])
            except TimeoutError:
                trouble = "Too many ask which places spoke for an answer; ask again later."
            except ModelError as error:
                trouble = f"Which places spoke for it cannot be told: {error}."
    pictures.insert(0, ("As the network sees it", seen, f"{filename}, as the network sees it"))
    if heat:
        said = f"{filename} in grey, the places that spoke for {record['label']} in colour"
        pictures.append((f"What speaks for {record['label']}: the brighter, the more", heat, said))
    return {
        "heading": record["label"] if labelled else "Answer",
        "sure": f"{100 * record['confidence']:.1f} % sure" if labelled else "",
        "bars": bars,
        "words": {} if labelled else words,
        "pictures": pictures,
        "trouble": trouble,
        "input": filename,
        **{key: answer[key] for key in ("milliseconds", "model", "version", "engine")},
    }


def _seen(model: Model, data: bytes, most: int) -> str:
    """Return the image as the task reads it."""
    pixels = _large(model.predictor.read(open_upload(data, most))).numpy()
    picture = Image.fromarray(pixels[:3].transpose(1, 2, 0) if len(pixels) >= 3 else pixels[0])
    picture.thumbnail((_SIDE, _SIDE))
    return data_url(picture)


def _heated(model: Model, data: bytes, most: int, label: str) -> str:
    """Return the image with the places that speak for a label in colour.

    Raises:
        ModelError: the network cannot tell.
    """
    image = model.predictor.read(open_upload(data, most))
    heat = grad_cam(model.predictor.bundle, image, model.predictor.labels.index(label))
    large = _large(image)
    smooth = F.interpolate(heat[None, None], large.shape[-2:], mode="bilinear")[0, 0]
    picture = Image.fromarray(warmed(large.numpy(), smooth.numpy()))
    picture.thumbnail((_SIDE, _SIDE))
    return data_url(picture)


def _large(image: Tensor) -> Tensor:
    """Return an image as uint8; one of few pixels with larger ones, which browsers would blur."""
    if image.is_floating_point():  # as some tasks read it, from 0 to 255 too
        image = image.round().clamp(0, 255).to(torch.uint8)
    times = max(1, _SIDE // max(image.shape[-2:]))
    return image.repeat_interleave(times, 1).repeat_interleave(times, 2)


def _bars(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return what has a share of the answer, the largest first."""
    if "top" in record:
        return [(item["label"], item["probability"]) for item in record["top"]]
    areas = [(area["label"], area["share"]) for area in record.get("areas", ())]
    return sorted(areas, key=lambda area: -area[1])[:_BARS]
