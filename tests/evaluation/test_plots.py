"""Every picture is written whole, without warnings, for tame data and for hostile ones."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reskit import plots
from reskit.errors import OutputError
from reskit.tasks.labelled import CALIBRATION_BINS, _reliability

HOSTILE = ["$x_1$ and $", "猫\n犬", "long " * 40, "", r"\frac{", "a\tb\x1b", "\U0001f600"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def blue(path: Path) -> int:
    """How many pixels have the colour of held-out values."""
    return int((abs(pixels(path) - (0x00, 0x72, 0xB2)).max(axis=2) < 12).sum())


def row(epoch: int, **more: Any) -> dict[str, Any]:
    values = {"epoch": epoch, "lr": 0.1 / epoch, "train_loss": 2 / epoch, "images_per_second": 99.0}
    return (
        values | {"test_top1": 1 - 1 / (epoch + 1), "test_cross_entropy": 2.1 / epoch, "test_f1": 0.5} | more
    )


@pytest.mark.parametrize("classes", [1, 2, 7, 20, 21, 120])
def test_confusion_of_any_size(classes: int, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).integers(0, 40, (classes, classes))
    matrix[0] = 0  # a class without examples
    labels = (HOSTILE * classes)[:classes]
    path = plots.confusion(matrix.tolist(), labels, tmp_path / "new" / "c.png")
    assert path == tmp_path / "new" / "c.png"
    assert min(pixels(path).shape[:2]) > 200


def test_confusion_shows_the_counts(tmp_path: Path) -> None:
    labels = ["a", "b"]
    one, other = (pixels(plots.confusion([[n, 0], [0, 9]], labels, tmp_path / f"{n}.png")) for n in (8, 9))
    assert one.shape == other.shape
    assert (one != other).any()  # the rows' shares are the same: what differs is the number


def test_the_same_figures_give_the_same_file(tmp_path: Path) -> None:
    a, b = (plots.confusion([[3, 1], [0, 4]], ["a", "b"], tmp_path / name) for name in ("a.png", "b.png"))
    assert a.read_bytes() == b.read_bytes()


def test_reliability_states_the_calibration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("reskit.plots.evaluation.put_title", lambda *texts: said.append(texts[-1]))
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.3, 1, 5000)
    correct = generator.random(5000) < confidence - 0.2
    plots.reliability(_reliability(confidence, correct), tmp_path / "r.png", bin_count=CALIBRATION_BINS)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    groups = np.digitize(confidence, edges)
    expected = sum(
        (groups == g).mean() * abs(correct[groups == g].mean() - confidence[groups == g].mean())
        for g in np.unique(groups)
    )
    assert expected == pytest.approx(0.2, abs=0.03)
    assert said == [f"expected calibration error {expected:.1%}; overconfident by {expected:.1%}"]


def test_reliability_of_few_and_no_examples(tmp_path: Path) -> None:
    one = [{"bin": 14, "count": 1, "confidence": 1.0, "accuracy": 0.0}]
    assert pixels(plots.reliability(one, tmp_path / "one.png")).std() > 0
    plots.reliability([], tmp_path / "none.png")


@pytest.mark.parametrize("count", [1, 5, 6, 7, 24, 40])
def test_grid_of_any_images(count: int, tmp_path: Path) -> None:
    shapes = [(8, 8, 1), (32, 20, 3), (200, 300, 3), (5, 90), (1, 1, 1), (16, 16, 4), (9, 9, 2)]
    images = [np.full(shapes[i % 7], 90, np.uint8) for i in range(count)]
    titles = [HOSTILE[i % 7] for i in range(count)]
    height, width, _ = pixels(plots.image_grid(images, titles, tmp_path / "g.png", heading="$Worst")).shape
    rows = -(-min(count, 24) // 6)
    assert rows * 240 < height < rows * 380 + 120
    assert width > 200


def test_tiny_images_are_not_smoothed(tmp_path: Path) -> None:
    image = np.array([[0, 255], [255, 0]], np.uint8)[:, :, None]
    shown = pixels(plots.image_grid([image], [""], tmp_path / "g.png"))
    assert np.isin(shown, (0, 255)).mean() > 0.97


def test_grid_needs_a_title_an_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        plots.image_grid([np.zeros((2, 2, 1), np.uint8)], [], tmp_path / "g.png")


def test_curves_show_the_held_out_split(tmp_path: Path) -> None:
    full = plots.training_curves([row(e) for e in range(1, 31)], tmp_path / "full.png", title="run $1$ 猫")
    without = [{key: row(e)[key] for key in ("epoch", "lr", "train_loss")} for e in range(1, 31)]
    bare = plots.training_curves(without, tmp_path / "bare.png")
    assert blue(full) > 500
    assert blue(bare) == 0
    assert pixels(full).shape[1] > 1.3 * pixels(bare).shape[1]  # three panels, two panels


@pytest.mark.parametrize(
    "history",
    [
        [],
        [row(1)],
        [{"epoch": 1}],
        [row(1), row(2, test_top1=None), row(3, train_loss=float("nan"), test_cross_entropy=float("inf"))],
        [row(1), {"epoch": 2, "train_loss": 1.0}],
        [row(1, test_top1=None)],
    ],
)
def test_curves_of_gappy_histories(history: list[dict[str, Any]], tmp_path: Path) -> None:
    assert plots.training_curves(history, tmp_path / "c.png").is_file()


@pytest.mark.parametrize(("higher", "said"), [(True, "0.9000 in epoch 2"), (False, "0.1000 in epoch 1")])
def test_curves_name_the_best_epoch(
    higher: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts: list[str] = []
    monkeypatch.setattr("reskit.plots.training.put_title", lambda *texts: facts.append(texts[-1]))
    history = [{"epoch": e, "test_mae": value} for e, value in enumerate([0.1, 0.9, 0.5], start=1)]
    plots.training_curves(history, tmp_path / "c.png", metric="mae", higher_is_better=higher)
    assert facts == [f"test 0.5000 at the end; best {said}"]


def test_threads_draw_the_same_without_pyplot(tmp_path: Path) -> None:
    history = [row(e) for e in range(1, 9)]

    def draw(name: int) -> bytes:
        return plots.training_curves(history, tmp_path / f"{name}.png", title="a").read_bytes()

    with ThreadPoolExecutor(4) as pool:
        drawn = set(pool.map(draw, range(8)))
    assert len(drawn) == 1
    loaded = sys.modules.get("matplotlib.pyplot")
    assert loaded is None or not loaded.get_fignums()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/c\.png"):
        plots.training_curves([row(1)], tmp_path / "file" / "c.png")
