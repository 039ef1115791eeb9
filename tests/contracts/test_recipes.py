"""One set of promises over every packaged recipe."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

from reskit.errors import ConfigError
from reskit.models import MODELS
from reskit.recipes import list_recipes, load_recipe
from reskit.tasks import TASKS
from reskit.training.optim import learning_rate_factor

RECIPES = list_recipes()


def text_of(name: str) -> str:
    return (resources.files("reskit.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def test_there_are_recipes() -> None:
    assert {"digits-resnet8", "cifar10-resnet20", "imagefolder", "imagenet-resnet50"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_it_loads_and_is_named_as_its_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.data.path is None  # the same recipe serves any copy of the data
    assert recipe.task.name in TASKS


@pytest.mark.parametrize("name", RECIPES)
def test_every_link_of_its_chain_is_a_recipe(name: str) -> None:
    links = [name]
    while base := yaml.safe_load(text_of(links[-1])).get("extends"):
        assert base in RECIPES
        links.append(base)
        assert len(links) == len(set(links))
    recipe, root = load_recipe(name), load_recipe(links[-1])
    said = {key for link in links[:-1] for key in yaml.safe_load(text_of(link))}
    assert all(getattr(recipe, key) == getattr(root, key) for key, _ in root if key not in said)


@pytest.mark.parametrize("name", RECIPES)
def test_it_goes_to_yaml_and_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")
    assert load_recipe(file) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_its_network_is_registered_and_takes_its_arguments(name: str) -> None:
    model = load_recipe(name).model
    # The weights name the network of a recipe that leaves it to them.
    assert set(model.arguments) <= (set() if model.name == "auto" else set(MODELS.get(model.name).options))
    assert not model.weights  # nothing is fetched behind the user's back


@pytest.mark.parametrize("name", RECIPES)
def test_its_learning_rate_rises_to_the_full_rate_and_ends_low(name: str) -> None:
    training = load_recipe(name).training
    factors = [
        learning_rate_factor(training.schedule, step, steps_per_epoch=10, epochs=training.epochs)
        for step in range(10 * training.epochs)
    ]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) > 0.99
    assert factors[-1] < 0.05


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_key_is_refused_with_a_suggestion(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"recipe '{name}': unknown key 'training.epoch'; did you mean 'epochs'"
    ):
        load_recipe(name, ["training.epoch=1"])
