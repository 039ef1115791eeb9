"""One answer of a model, as the page shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reskit.attribution import explains, grad_cam
from reskit.data.texts import TextPreprocess
from reskit.errors import ModelError
from reskit.plots.attribution import warmed
from reskit.serving.models import Model
from reskit.serving.predictor import data_url
from reskit.serving.service import Service
from reskit.serving.uploads import Sent, open_sent

__all__ = ["shown"]

_SIDE = 512
_BARS = 8
_STEPS = 4
"""Of how much a word speaks for an answer, in the style of the page."""
_ROWS = 50
_NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("heading", "sure", "trouble", "more"), ""),
    **dict.fromkeys(("bars", "pictures", "seen", "columns", "rows"), ()),
    "words": {},
}
"""What a template shows where there is nothing to show."""


async def shown(service: Service, name: str, sent: Sent, *, explain: bool) -> dict[str, Any]:
    """Ask a model and return what the template of an answer needs.

    Args:
        service: asked as by `/v1/predict`, with the same limits.
        name: of the model; may be empty where there is one only.
        sent: what is asked about.
        explain: whether to say which places spoke for the answer, where the task is one of classes.

    Raises:
        ServingError: it is refused, or could not be answered.
    """
    answer = await service.predict(name, "", [sent], pictures=True)
    model = service.models.get(answer["model"], answer["version"])
    records = answer["predictions"]
    told = {key: answer[key] for key in ("milliseconds", "model", "version", "engine")}
    if model.predictor.bundle.task.takes == "table" or len(records) > 1:
        return {**_NOTHING, **_many(model, records), "input": sent.name, **told}
    (record,) = records
    task = model.predictor.bundle.task
    drawn: dict[str, str] = record.get("pictures", {})
    labelled = record.get("label") is not None
    words = {key: value for key, value in task.words(record).items() if key not in drawn}
    return {
        **_NOTHING,
        "heading": record["label"] if labelled else "Answer",
        "sure": f"{100 * record['confidence']:.1f} % sure" if labelled else "",
        "bars": _bars(record),
        "words": {} if labelled else words,
        **await _explained(service, model, sent, record if explain else None, drawn),
        "input": sent.name,
        **told,
    }


async def _explained(
    service: Service, model: Model, sent: Sent, record: Mapping[str, Any] | None, drawn: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the network saw, and which places of it spoke for a record, where one is given.

    Args:
        service: whose limits hold.
        model: that was asked.
        sent: what it was asked about.
        record: its answer.
        drawn: pictures of its answer, as URLs.
    """
    task, most = model.predictor.bundle.task, service.settings.max_pixels
    heat: Tensor | None = None
    trouble = ""
    async with model.used():
        example = await service.reading(_read, model, sent, most)
        if record is not None and explains(model.predictor.bundle):
            label = model.predictor.labels.index(record["label"])
            try:
                async with asyncio.timeout(service.settings.timeout_s), service.explaining:
                    heat = await service.reading(grad_cam, model.predictor.bundle, example, label)
            except TimeoutError:
                trouble = "Too many ask which places spoke for an answer; ask again later."
            except ModelError as error:
                trouble = f"Which places spoke for it cannot be told: {error}."
        if isinstance(task.preprocess, TextPreprocess):
            seen = task.preprocess.words(example)
            return {"seen": list(zip(seen, _levels(heat, len(seen)), strict=True)), "trouble": trouble}
        url = await service.reading(_pictured, example)
        pictures = [("As the network sees it", url, f"{sent.name}, as the network sees it")]
        if record is not None and heat is not None:
            said = f"{sent.name} in grey, the places that spoke for {record['label']} in colour"
            url = await service.reading(_warm, example, heat)
            pictures.append((f"What speaks for {record['label']}: the brighter, the more", url, said))
    pictures[1:1] = [
        (key.replace("_", " ").capitalize(), url, f"{key.replace('_', ' ')} of {sent.name}")
        for key, url in drawn.items()
    ]
    return {"pictures": pictures, "trouble": trouble}


def _read(model: Model, sent: Sent, most: int) -> Tensor:
    """Return the one example that was sent, as the task reads it."""
    (item,) = open_sent(sent, model.predictor.bundle.task, most)
    return model.predictor.read(item.content)


def _levels(heat: Tensor | None, count: int) -> list[int]:
    """Return how much each of the first places speaks for the answer, in steps from 0."""
    if heat is None or not count:
        return [0] * count
    strongest = max(float(heat[:count].max()), 1e-12)
    return [round(_STEPS * float(value) / strongest) for value in heat[:count]]


def _many(model: Model, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the answers of several examples, as a table."""
    task = model.predictor.bundle.task
    good = [task.words(record) for record in records if record["error"] is None]
    rows = [
        (record["input"], list(task.words(record).values()), "")
        if record["error"] is None
        else (record["input"], [], record["error"])
        for record in records[:_ROWS]
    ]
    left = len(records) - _ROWS
    return {
        "heading": f"{len(records):,} answer{'s' if len(records) > 1 else ''}",
        "columns": list(good[0]),
        "rows": rows,
        "more": f"... and {left:,} more, which /v1/predict answers." if left > 0 else "",
    }


def _pictured(image: Tensor) -> str:
    """Return an image as the task reads it."""
    pixels = _large(image).numpy()
    picture = Image.fromarray(pixels[:3].transpose(1, 2, 0) if len(pixels) >= 3 else pixels[0])
    picture.thumbnail((_SIDE, _SIDE))
    return data_url(picture)


def _warm(image: Tensor, heat: Tensor) -> str:
    """Return an image with the places that speak for a label in colour."""
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
