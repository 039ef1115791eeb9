"""Images are uploaded as people do, and answered as `reskit.predict` answers."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import Running, png

import reskit


def form(*files: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Return a form with files, as browsers send it."""
    parts = [
        f'--xyz\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join([*parts, b"--xyz--\r\n"]), {"Content-Type": "multipart/form-data; boundary=xyz"}


@pytest.fixture(scope="module")
def rows(bundle: Path, images: np.ndarray) -> Any:
    return reskit.predict(bundle, [png(image) for image in images])


def same(found: dict[str, Any], row: dict[str, Any]) -> None:
    assert found.keys() == row.keys()
    assert found["label"] == row["label"]
    assert found["confidence"] == pytest.approx(row["confidence"], rel=1e-4)
    assert [item["label"] for item in found["top"]] == [item["label"] for item in row["top"]]


def test_the_rows_are_those_of_predict(shared: Running, images: np.ndarray, rows: Any) -> None:
    files = [(f"{place}.png", png(image)) for place, image in enumerate(images)]
    reply = shared.post("/v1/predict?model=digits", *form(*files))
    assert reply.status == 200
    assert reply.json["model"] == "digits"
    assert reply.json["engine"] == "torch-fp32"
    for (name, _), found, row in zip(files, reply.json["predictions"], rows, strict=True):
        assert found["input"] == name
        same(found, row)


def test_an_image_may_be_the_body(shared: Running, images: np.ndarray, rows: Any) -> None:
    reply = shared.post("/v1/predict", png(images[0]), {"Content-Type": "image/png"})
    same(reply.json["predictions"][0], rows[0])


def test_one_bad_file_among_good_ones_is_a_row_with_an_error(shared: Running, images: np.ndarray) -> None:
    cut = png(images[1])[:60]
    reply = shared.post("/v1/predict", *form(("a", png(images[0])), ("b", b"not an image"), ("c", cut)))
    assert reply.status == 200
    good, bad, broken = reply.json["predictions"]
    assert good["error"] is None
    assert "not an image of one of the formats" in bad["error"]
    assert bad["label"] is None
    assert broken["error"]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "the body is empty"),
        (b"GIF89a", "not an image"),
        (EPS, "not an image of one of the formats"),
        (form(), "form"),
        ((b"--xyz\r\n", {"Content-Type": "multipart/form-data; boundary=xyz"}), "form"),
        ((b"x", {"Content-Type": "multipart/form-data"}), "boundary"),
        ((b"x", {"Content-Type": "multipart/form-data; boundary=xyz"}), "form"),
    ],
    ids=["nothing", "cut", "a program", "no file", "cut form", "no boundary", "no form"],
)
def test_what_is_no_image_is_refused(shared: Running, sent: Any, words: str) -> None:
    reply = shared.post("/v1/predict", *(sent if isinstance(sent, tuple) else (sent,)))
    assert reply.status == 400
    assert words in reply.json["error"]


@pytest.mark.parametrize("missing", [4, 40])
def test_a_form_that_breaks_off_is_refused_whole(shared: Running, images: np.ndarray, missing: int) -> None:
    body, headers = form(("a", png(images[0])), ("b", png(images[1])))
    reply = shared.post("/v1/predict", body[:-missing], headers)
    assert (reply.status, reply.json["error"]) == (400, "the form breaks off before its last boundary")


def test_the_model_must_be_clear(running: Callable[..., Running], bundle: Path, images: np.ndarray) -> None:
    server = running([("a", bundle), ("b", bundle)], grpc_port=None)
    reply = server.post("/v1/predict", png(images[0]))
    assert reply.status == 400
    assert "say which model: a, b" in reply.json["error"]
    assert server.post("/v1/predict?model=b&version=1", png(images[0])).json["model"] == "b"
    assert server.post("/v1/predict?model=c", png(images[0])).status == 404


def test_nothing_touches_the_disk(
    running: Callable[..., Running], bundle: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was made")

    server = running([("digits", bundle)], max_body_mib=8)
    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "mkdtemp", "_TemporaryFileWrapper"):
        monkeypatch.setattr(tempfile, name, refuse)
    noise = np.random.default_rng(0).integers(0, 256, (1, 1500, 1500), dtype=np.uint8)
    large = png(noise)
    assert len(large) > 1 << 20  # from here on, forms usually go to the disk
    assert server.post("/v1/predict", *form(("../../etc/passwd", large))).status == 200


def test_large_images_are_answered_in_tiles(
    running: Callable[..., Running], denoiser: Path, tmp_path: Path
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 50, 70), dtype=np.uint8)
    (tmp_path / "noisy.png").write_bytes(png(picture))
    (row,) = reskit.predict(denoiser, tmp_path / "noisy.png", save=tmp_path)
    server = running([denoiser], grpc_port=None, max_batch=5)  # fewer than the tiles asked for at once
    reply = server.post("/v1/predict?pictures=true", png(picture))
    assert reply.status == 200, reply.body
    (found,) = reply.json["predictions"]
    assert (found["height"], found["width"]) == (row["height"], row["width"]) == (50, 70)
    kind, _, data = found["pictures"]["restored"].partition(",")
    assert kind == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    saved = np.asarray(Image.open(row["restored"])).astype(int)
    assert abs(pixels - saved).max() <= 1  # a value on the edge may be rounded to either side
    assert server.get("/v2/models/denoiser").json["inputs"][0]["datatype"] == "FP32"
    assert server.get("/v2/models/stats").json["model_stats"][0]["inference_count"] == 24
    assert "pictures" not in server.post("/v1/predict", png(picture)).json["predictions"][0]
