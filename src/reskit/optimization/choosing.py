"""Which engine for which goal, and which are worth choosing for anything at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reskit.backends.plan import Engine, Goal

__all__ = ["choose", "mark_pareto"]

_BEST: dict[Goal, Callable[[Engine], tuple[float, ...]]] = {
    "latency": lambda engine: (engine.latency_ms,),
    "throughput": lambda engine: (-engine.images_per_s,),
    "memory": lambda engine: (engine.memory_mib, engine.latency_ms),
    "size": lambda engine: (engine.file_mib, engine.latency_ms),
}


def choose(engines: Sequence[Engine]) -> dict[Goal, int]:
    """Return for each goal the place of the best engine."""
    return {
        goal: min(range(len(engines)), key=lambda place: key(engines[place])) for goal, key in _BEST.items()
    }


def mark_pareto(engines: Sequence[Engine], *, higher_is_better: bool = True) -> list[Engine]:
    """Return the engines, those marked that no other beats in one respect without losing in another.

    Respects: latency, throughput, memory, file size and the guard's metric.
    """

    def costs(engine: Engine) -> tuple[float, ...]:
        metric = -engine.metric if higher_is_better else engine.metric
        return engine.latency_ms, -engine.images_per_s, engine.memory_mib, engine.file_mib, metric

    def beaten(engine: Engine) -> bool:
        mine = costs(engine)
        return any(
            all(a <= b for a, b in zip(theirs, mine, strict=True)) and theirs != mine
            for theirs in map(costs, engines)
        )

    return [engine.model_copy(update={"pareto": not beaten(engine)}) for engine in engines]
