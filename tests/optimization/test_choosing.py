"""Choices and the Pareto front, on figures made up so that the answer is known."""

from __future__ import annotations

from itertools import product

import pytest

from reskit.backends.plan import BatchFigures, Engine
from reskit.optimization.choosing import choose, mark_pareto


def engine(
    name: str,
    *,
    one: float = 10.0,
    many: float = 100.0,
    memory: float = 100.0,
    size: float = 10.0,
    metric: float = 0.9,
) -> Engine:
    return Engine(
        name=name,
        backend="torch",
        precision="fp32",
        threads=1,
        streams=1,
        file=f"{name}.safetensors",
        batches=(
            BatchFigures(batch=1, p50_ms=one, p95_ms=2 * one, images_per_s=1000 / one),
            BatchFigures(batch=16, p50_ms=many, p95_ms=2 * many, images_per_s=16000 / many),
        ),
        memory_mib=memory,
        file_mib=size,
        difference=0.0,
        metric=metric,
    )


ENGINES = [
    engine("plain"),
    engine("quick", one=1.0, many=120.0, memory=120.0),
    engine("wide", one=20.0, many=10.0),
    engine("lean", memory=50.0, one=11.0),
    engine("small", size=1.0, one=12.0, many=130.0),
    engine("beaten", one=11.0, many=101.0, memory=101.0, size=11.0, metric=0.89),
]


def test_each_goal_has_its_best() -> None:
    chosen = {goal: ENGINES[place].name for goal, place in choose(ENGINES).items()}
    assert chosen == {"latency": "quick", "throughput": "wide", "memory": "lean", "size": "small"}


def test_ties_in_size_go_to_the_faster() -> None:
    twins = [engine("slow", one=2.0), engine("fast", one=1.0)]
    assert twins[choose(twins)["size"]].name == "fast"
    assert twins[choose(twins)["memory"]].name == "fast"


def test_only_what_is_beaten_everywhere_is_off_the_front() -> None:
    marked = {item.name: item.pareto for item in mark_pareto(ENGINES)}
    assert marked == {name: name != "beaten" for name in marked}


def test_front_agrees_with_its_definition() -> None:
    values = (1.0, 2.0)
    engines = [
        engine(str(place), one=a, many=b, memory=c, metric=d)
        for place, (a, b, c, d) in enumerate(product(values, repeat=4))
    ]
    on_front = [item for item in mark_pareto(engines) if item.pareto]
    assert [(item.latency_ms, item.images_per_s, item.memory_mib, item.metric) for item in on_front] == [
        (1.0, 16000.0, 1.0, 2.0)
    ]


def test_a_worse_metric_may_be_the_lower_or_the_higher_one() -> None:
    pair = [engine("low", metric=0.1), engine("high", metric=0.2)]
    assert [item.pareto for item in mark_pareto(pair)] == [False, True]
    assert [item.pareto for item in mark_pareto(pair, higher_is_better=False)] == [True, False]


def test_figures_of_a_batch_size() -> None:
    assert ENGINES[2].at(16).images_per_s == ENGINES[2].images_per_s == 1600
    assert ENGINES[2].latency_ms == pytest.approx(20)
