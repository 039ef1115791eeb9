"""Grad-CAM points at what the network looked at, and leaves the network as it was."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import reskit
from reskit.attribution import grad_cam
from reskit.errors import ModelError
from reskit.plots.attribution import warmed


@pytest.fixture(scope="module")
def bundle(digits_run: Any) -> reskit.Bundle:
    return reskit.load(digits_run.bundle)


def test_it_is_the_class_activation_map_of_a_network_that_ends_in_a_mean(bundle: reskit.Bundle) -> None:
    for image in bundle.samples["samples"][:4]:
        label = int(bundle.model(bundle.task.normalize(image[None])).argmax())
        found = grad_cam(bundle, image, label)
        with torch.inference_mode():  # Zhou et al. 2016: here both are the same, up to a factor
            last = bundle.model.feature_maps(bundle.task.normalize(image[None]))[-1]
            said = torch.einsum("k,khw->hw", bundle.model.head.weight[label], last[0]).relu()
            scaled = torch.nn.functional.interpolate(said[None, None], image.shape[-2:], mode="bilinear")[
                0, 0
            ]
        assert found.shape == image.shape[-2:]
        assert scaled.max() > 0
        torch.testing.assert_close(found, scaled / scaled.max())


def test_classes_are_told_apart(bundle: reskit.Bundle) -> None:
    image = bundle.samples["samples"][0]
    maps = [grad_cam(bundle, image, label) for label in range(10)]
    assert len({tuple(found.flatten().tolist()) for found in maps}) > 5
    assert all(found.min() >= 0 and found.max() <= 1 for found in maps)


def test_the_network_is_as_it_was(bundle: reskit.Bundle) -> None:
    image = bundle.samples["samples"][:1]
    before = bundle.model(bundle.task.inputs({"image": image}))
    with torch.inference_mode():
        grad_cam(bundle, image[0], 0)
    torch.testing.assert_close(bundle.model(bundle.task.inputs({"image": image})), before, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in bundle.model.modules())
    assert all(parameter.grad is None for parameter in bundle.model.parameters())


def test_many_may_ask_while_it_answers(bundle: reskit.Bundle) -> None:
    images = bundle.samples["samples"][:4]
    alone = [grad_cam(bundle, image, 1) for image in images]
    together: dict[int, torch.Tensor] = {}

    def ask(place: int) -> None:
        for _ in range(5):
            bundle.model(bundle.task.inputs({"image": images}))
            together[place] = grad_cam(bundle, images[place], 1)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, found in enumerate(alone):
        torch.testing.assert_close(together[place], found)


def test_other_tasks_are_refused(bundle: reskit.Bundle) -> None:
    other: Any = SimpleNamespace(task=SimpleNamespace(name="denoise", explains=False))
    with pytest.raises(ModelError, match="denoise has no classes"):
        grad_cam(other, bundle.samples["samples"][0], 0)


def test_hot_places_glow() -> None:
    image, heat = np.full((1, 4, 4), 100, np.uint8), np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    picture = warmed(image, heat)
    assert picture.shape == (4, 4, 3)
    assert picture[0, 0].sum() > 2 * picture[3, 3].sum()
    assert (picture[3, 3] == picture[1, 2]).all()
