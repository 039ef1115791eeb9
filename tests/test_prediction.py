"""Every kind of input gives the row the network gives by hand, in its place; every format reads back."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from reskit.bundle import Bundle
from reskit.data import ImagePreprocess
from reskit.errors import ConfigError, DataError, OutputError
from reskit.models import create_model
from reskit.prediction import OUTPUT_FORMATS, Predictions, predict, predict_rows
from reskit.tasks import Classify

LABELS = ["ant", 'bee, "honey"', "猫"]
HOSTILE = [
    "plain.png",
    "new\nline.png",
    'com,ma "quoted".png',
    "ünï 猫.png",
    "[red]x[/red].png",
    " space .png",
    "a*b?[c].png",
]


def make_bundle(folder: Path, channels: int) -> Bundle:
    torch.manual_seed(0)
    preprocess = ImagePreprocess(
        size=(16, 16), channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels
    )
    model = create_model("cifar_resnet8", num_classes=3, in_channels=channels)
    samples = torch.randint(0, 256, (4, channels, 16, 16), dtype=torch.uint8)
    task = Classify(preprocess=preprocess, labels=LABELS)
    return Bundle.write(folder, task=task, model=model, metrics={}, provenance={}, samples=samples)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("colour") / "bundle", 3)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("grey") / "bundle", 1)


def pictures(count: int, *, shape: tuple[int, ...] = (16, 16, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, format="PNG")
    return path


def by_hand(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    """Probabilities of 16x16 images (N, H, W, C), with arithmetic of our own for the preprocessing."""
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    with torch.no_grad():
        logits = bundle.model(((inputs / 255 - 0.5) / 0.25).float())
    return logits.double().softmax(1).numpy()


def check(rows: Predictions, probabilities: np.ndarray) -> None:
    assert len(rows) == len(probabilities)
    for row, expected in zip(rows, probabilities, strict=True):
        order = np.argsort(-expected)
        assert list(row) == ["input", "label", "confidence", "top", "error"]
        assert row["error"] is None
        assert row["label"] == LABELS[order[0]]
        assert row["confidence"] == pytest.approx(expected[order[0]], abs=1e-5)
        assert [item["label"] for item in row["top"]] == [LABELS[i] for i in order]
        assert [item["probability"] for item in row["top"]] == pytest.approx(
            expected[order].tolist(), abs=1e-5
        )


def kinds(folder: Path, pixels: np.ndarray) -> dict[str, Any]:
    """The same six images in every way they may be given."""
    paths = [save(folder / "set" / f"{i}.png", image) for i, image in enumerate(pixels)]
    save(folder / "deep" / "0.png", pixels[0])
    for i, image in enumerate(pixels[1:], start=1):
        save(folder / "deep" / f"{i}" / "x.png", image)
    (folder / "set" / "notes.txt").write_text("not an image")
    (folder / "set" / ".hidden.png").write_text("not an image")
    encoded = [path.read_bytes() for path in paths]
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return {
        "paths": paths,
        "strings": list(map(str, paths)),
        "generator": (path for path in paths),
        "folder": folder / "set",
        "folder_str": str(folder / "set"),
        "deep_folder": folder / "deep",
        "glob": str(folder / "set" / "*.png"),
        "deep_glob": str(folder / "dee*" / "**" / "*.png"),
        "numpy_batch": pixels,
        "numpy_list": list(pixels),
        "torch_batch": tensor,
        "torch_list": list(tensor),
        "pil": [Image.fromarray(image.squeeze()) for image in pixels],
        "bytes": encoded,
        "records": [{"bytes": data, "path": None} for data in encoded],
        "mixed": [paths[0], pixels[1], tensor[2:4], Image.fromarray(pixels[4].squeeze()), encoded[5]],
        "glob_among_paths": [str(folder / "set" / "[01].png"), *paths[2:]],
    }


KINDS = (
    "paths strings generator folder folder_str deep_folder glob deep_glob numpy_batch numpy_list torch_batch "
    "torch_list pil bytes records mixed glob_among_paths"
)


@pytest.mark.parametrize("kind", KINDS.split())
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_input_agrees_with_the_network(
    kind: str, channels: int, bundle: Bundle, grey: Bundle, tmp_path: Path
) -> None:
    used = bundle if channels == 3 else grey
    pixels = pictures(6, shape=(16, 16, channels))
    check(predict(used, kinds(tmp_path, pixels)[kind], batch_size=4), by_hand(used, pixels))


@pytest.mark.parametrize("kind", ["path", "array", "tensor", "pil", "bytes"])
def test_one_image_alone(kind: str, bundle: Bundle, tmp_path: Path) -> None:
    pixels = pictures(1)
    path = save(tmp_path / "a.png", pixels[0])
    one = {
        "path": path,
        "array": pixels[0],
        "tensor": torch.from_numpy(pixels[0]).permute(2, 0, 1),
        "pil": Image.fromarray(pixels[0]),
        "bytes": path.read_bytes(),
    }
    rows = predict(bundle, one[kind])
    check(rows, by_hand(bundle, pixels))
    assert rows[0]["input"] == (str(path) if kind == "path" else "inputs")


def test_bundle_may_be_a_folder_and_has_the_method(bundle: Bundle) -> None:
    pixels = pictures(2)
    assert predict(str(bundle.path), pixels) == bundle.predict(pixels) == predict(bundle.path, pixels)


def test_plain_grey_arrays_and_tensors(grey: Bundle) -> None:
    flat = pictures(1, shape=(16, 16))[0]
    expected = by_hand(grey, flat[None, :, :, None])
    check(predict(grey, flat), expected)
    check(predict(grey, torch.from_numpy(flat)), expected)


def test_places_are_named(bundle: Bundle) -> None:
    image = pictures(1)[0]
    rows = predict(bundle, [image, pictures(2), {"bytes": None, "path": "gone.png"}])
    assert [row["input"] for row in rows] == ["inputs[0]", "inputs[1][0]", "inputs[1][1]", "gone.png"]
    assert [row["input"] for row in predict(bundle, pictures(2))] == ["inputs[0]", "inputs[1]"]


@pytest.mark.parametrize(
    ("shape", "ok"),
    [
        ((16, 16), True),
        ((16, 16, 4), True),
        ((3, 20, 3), True),  # by the rule: three rows of twenty pixels
        ((3, 16, 16), False),  # channels first
        ((5, 16, 16), False),  # a stack of grey images without their axis
        ((2, 3, 16, 16), False),
        ((16, 16, 2), False),
        ((16,), False),
        ((1, 2, 16, 16, 3), False),
        ((0, 16, 16, 3), False),
        ((16, 0, 3), False),
    ],
)
def test_shapes_of_arrays(shape: tuple[int, ...], ok: bool, bundle: Bundle) -> None:
    array = np.zeros(shape, np.uint8)
    if ok:
        assert predict(bundle, array)[0]["error"] is None
    else:
        with pytest.raises(DataError, match=r"^inputs is an array of uint8 \("):
            predict(bundle, array)


@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 16, 16, 3), (5, 16, 16)])
def test_shapes_of_tensors(shape: tuple[int, ...], bundle: Bundle) -> None:
    with pytest.raises(DataError, match="a tensor has its channels first"):
        predict(bundle, torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    "array", [np.zeros((16, 16, 3), np.float32), torch.zeros(3, 16, 16), np.zeros((4, 4), int)]
)
def test_only_raw_pixels(array: Any, bundle: Bundle) -> None:
    with pytest.raises(DataError, match="raw pixels from 0 to 255"):
        predict(bundle, array)


def test_order_and_errors_in_their_place(bundle: Bundle, tmp_path: Path) -> None:
    pixels = pictures(5)
    paths: list[Any] = [save(tmp_path / f"{i}.png", image) for i, image in enumerate(pixels)]
    cut = tmp_path / "cut.png"
    cut.write_bytes(paths[0].read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    (tmp_path / "nothing").mkdir()
    inputs = [
        tmp_path / "nothing", paths[4], cut, paths[3], tmp_path / "gone.png", tmp_path / "empty.png", 7,
        paths[0], "no*.match", np.zeros((3, 16, 16), np.uint8), paths[1], "x" * 400, "nul\0.png",
    ]  # fmt: skip
    for batch_size in (1, 2, 3, 50):
        rows = predict(bundle, inputs, batch_size=batch_size)
        good = [i for i, row in enumerate(rows) if row["error"] is None]
        assert good == [1, 3, 7, 10]
        assert [rows[i]["input"] for i in good] == [str(inputs[i]) for i in good]
        check(Predictions((rows[i] for i in good), bundle.task), by_hand(bundle, pixels[[4, 3, 0, 1]]))
        for row in rows.errors:
            assert row["label"] is row["confidence"] is None
            assert row["top"] == []
        assert [row["input"] for row in rows.errors][:2] == [str(tmp_path / "nothing"), str(cut)]
        assert "no such file" in rows[4]["error"]
        assert "empty" in rows[5]["error"]
        assert "int" in rows[6]["error"]
        assert rows[6]["input"] == "inputs[6]"


def test_batch_size_does_not_matter(bundle: Bundle) -> None:
    pixels = pictures(11)
    expected = by_hand(bundle, pixels)
    for batch_size in (1, 3, 11, 100):
        check(predict(bundle, pixels, batch_size=batch_size), expected)


def test_other_sizes_and_modes_go_through_the_preprocessing(bundle: Bundle, tmp_path: Path) -> None:
    image = Image.fromarray(pictures(1, shape=(40, 23, 4))[0])
    image.save(tmp_path / "a.png")
    read = bundle.task.preprocess.read(tmp_path / "a.png").permute(1, 2, 0)[None].numpy()
    check(predict(bundle, [tmp_path / "a.png"]), by_hand(bundle, read))


@pytest.mark.parametrize("inputs", [[], (), "none*.png", ["none*.png"], iter([]), None, 3, [None]])
def test_no_input_at_all_is_an_error(inputs: Any, bundle: Bundle) -> None:
    with pytest.raises(DataError):
        predict(bundle, inputs)


def test_empty_folder_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image files"):
        predict(bundle, tmp_path)
    save(tmp_path / "below" / "a.png", pictures(1)[0])
    assert len(predict(bundle, tmp_path)) == 1
    with pytest.raises(DataError, match="sub-folders were not searched"):
        predict(bundle, tmp_path, recursive=False)


def test_missing_file_alone_is_a_row(bundle: Bundle, tmp_path: Path) -> None:
    (row,) = predict(bundle, tmp_path / "gone.png")
    assert "no such file" in row["error"]


def test_folder_is_sorted_follows_links_and_survives_loops(bundle: Bundle, tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a/b/c.jpg", "a.PNG", "c/1.webp"]
    for name in names:
        save(tmp_path / "real" / name, pictures(1)[0])
    (tmp_path / "real" / "a" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / ".git").mkdir()
    save(tmp_path / "real" / ".git" / "x.png", pictures(1)[0])
    rows = predict(bundle, tmp_path / "link")
    found = [str(Path(row["input"]).relative_to(tmp_path / "link")) for row in rows]
    assert found == ["a/b/c.jpg", "a/z.png", "a.PNG", "b.png", "c/1.webp"]
    assert not rows.errors


def test_hostile_file_names(bundle: Bundle, tmp_path: Path) -> None:
    pixels = pictures(len(HOSTILE))
    paths = [save(tmp_path / "in" / name, image) for name, image in zip(HOSTILE, pixels, strict=True)]
    rows = predict(bundle, [str(path) for path in paths])
    check(rows, by_hand(bundle, pixels))
    assert [row["input"] for row in rows] == [str(path) for path in paths]
    for suffix in OUTPUT_FORMATS:
        assert read_back(rows.write(tmp_path / f"out{suffix}")) == flat(rows)


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are not text")
def test_file_name_that_is_not_utf8(bundle: Bundle, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", pictures(1)[0])
    path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    rows = predict(bundle, tmp_path)
    assert rows[0]["input"].endswith(r"/\xff.png")
    assert rows[0]["error"] is None
    for suffix in OUTPUT_FORMATS:
        assert read_back(rows.write(tmp_path / f"out{suffix}")) == flat(rows)


def flat(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "input": row["input"],
            "label": row["label"],
            "confidence": row["confidence"],
            "top": [(item["label"], item["probability"]) for item in row["top"]],
            "error": row["error"],
        }
        for row in rows
    ]


def read_back(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return flat(pq.read_table(path).to_pylist())
    if path.suffix == ".json":
        return flat(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            return flat(map(json.loads, lines))
    with path.open(newline="", encoding="utf-8") as lines:
        return [
            {
                "input": row["input"],
                "label": row["label"] or None,
                "confidence": float(row["confidence"]) if row["confidence"] else None,
                "top": [
                    (row[f"top{i}_label"], float(row[f"top{i}_probability"]))
                    for i in range(1, 6)
                    if row.get(f"top{i}_label")
                ],
                "error": row["error"] or None,
            }
            for row in csv.DictReader(lines)
        ]


@pytest.mark.parametrize("suffix", [*OUTPUT_FORMATS, ".CSV"])
def test_formats_read_back(suffix: str, bundle: Bundle, tmp_path: Path) -> None:
    rows = predict(bundle, [pictures(3), tmp_path / "gone.png"])
    path = rows.write(tmp_path / "new" / "folder" / f"out{suffix}")
    path = path.rename(path.with_suffix(suffix.lower()))
    assert read_back(path) == flat(rows)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", OUTPUT_FORMATS)
def test_only_errors_and_no_rows_keep_their_columns(suffix: str, bundle: Bundle, tmp_path: Path) -> None:
    rows = predict(bundle, [tmp_path / "gone.png"])
    assert read_back(rows.write(tmp_path / f"out{suffix}")) == flat(rows)
    assert read_back(rows[:0].write(tmp_path / f"none{suffix}")) == []
    assert (
        rows.to_table().schema == rows[:0].to_table().schema == predict(bundle, pictures(1)).to_table().schema
    )


def test_unknown_suffix_and_unwritable_place(bundle: Bundle, tmp_path: Path) -> None:
    rows = predict(bundle, pictures(1))
    for name in ("out.txt", "out", ".csv.gz"):
        with pytest.raises(ConfigError, match=r"\.parquet"):
            rows.write(tmp_path / name)
    (tmp_path / "file").touch()
    for suffix in OUTPUT_FORMATS:
        with pytest.raises(OutputError):
            rows.write(tmp_path / "file" / f"out{suffix}")


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_batch_size_must_be_positive(batch_size: Any, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        predict_rows(bundle, pictures(1), batch_size=batch_size)


def test_rows_stream(bundle: Bundle) -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(None)
            yield pictures(1)[0]

    rows = predict_rows(bundle, endless(), batch_size=4)
    for _ in range(5):
        next(rows)
    assert len(taken) <= 9  # two batches, and the one looked at beyond
    assert not torch.is_inference_mode_enabled()


def test_damaged_weights_are_an_error_not_a_label(tmp_path: Path) -> None:
    broken = make_bundle(tmp_path / "bundle", 3)
    with torch.no_grad():
        broken.model.head.bias.fill_(float("nan"))
    rows = predict(broken, pictures(2))
    assert all("not finite" in row["error"] and row["label"] is None for row in rows)


def test_a_decoder_that_breaks_in_its_own_way_is_a_row(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ImagePreprocess.read

    def fragile(self: ImagePreprocess, item: Any) -> torch.Tensor:
        if item[0, 0, 0] == 1:
            raise RuntimeError("out of memory")
        return read(self, item)

    monkeypatch.setattr(ImagePreprocess, "read", fragile)
    rows = predict(
        bundle, np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3)
    )
    assert [row["error"] for row in rows] == [
        None,
        "cannot read inputs[1]: RuntimeError: out of memory",
        None,
    ]


def test_predictions_are_a_sequence(bundle: Bundle) -> None:
    rows = predict(bundle, pictures(4))
    assert len(rows) == 4
    assert rows[-1] is list(rows)[3]
    assert isinstance(rows[1:3], Predictions)
    assert [row["input"] for row in rows[1:3]] == ["inputs[1]", "inputs[2]"]
    with pytest.raises(IndexError):
        rows[4]


def test_text_for_people(bundle: Bundle, tmp_path: Path) -> None:
    inputs = [save(tmp_path / "[bold]\x1b[31m\n.png", pictures(1)[0]), "gone.png", pictures(30)]
    rows = predict(bundle, inputs)
    text = repr(rows)
    assert text.startswith("Predictions: 31 of 32 inputs read\n")
    assert "gone.png: error: " in text
    assert text.endswith("... and 22 more")
    assert len(text.splitlines()) == 12
    stream = io.StringIO()
    Console(file=stream, width=200).print(rows)
    shown = stream.getvalue()
    assert r"[bold]\x1b[31m\n.png" in shown
    assert "\x1b" not in text + shown
    assert "... and 12 more" in shown
    assert f"{rows[0]['confidence']:.1%}" in shown
