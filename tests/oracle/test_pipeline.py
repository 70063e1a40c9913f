"""Pipelined runs compute the reference's training step, in every order of work."""

from __future__ import annotations

from functools import partial

import pytest

from tests.oracle.compiled import Case, Outcome, run_cases
from tests.oracle.reference import Shape, gpt, llama, train
from tests.oracle.small_specs import RECOMPUTED, small_spec
from tests.oracle.test_same_numbers import batches, beginning, errors, layers, recipe

TOLERANCE = 1e-11
STAGED = "shard layers over pipe"
ORDERS = (
    "gpipe",
    "1f1b",
    "interleaved(chunks: 2)",
    "breadth_first(chunks: 2)",
    "zb_h1",
    "zb_v",
    "auto(memory: 1.5)",
)


def staged(*lines: str) -> str:
    """The directives of a pipeline with further ones."""
    return "\n  ".join((STAGED, *lines))


def cases(model: str) -> list[Case]:
    """Every order on two stages, and one or the other with what it must go together with."""
    found = [
        Case(f"{order}", small_spec(model, "f64", 4, staged(f"pipeline: {order}")), "pipe=2")
        for order in ORDERS
    ]
    more = (
        ("four stages", "pipe=4", 4, staged("pipeline: 1f1b")),
        ("four stages in halves", "pipe=4", 8, staged("pipeline: zb_h1")),
        ("data", "data=2,pipe=2", 4, staged("pipeline: zb_v", "zero 3 over data")),
        ("state divided", "pipe=2,data=2", 2, staged("pipeline: 1f1b", "zero 2 over data")),
        ("tensor", "pipe=2,tensor=2", 4, staged("pipeline: zb_h1", RECOMPUTED)),
        ("one micro-batch", "pipe=2", 1, staged("pipeline: 1f1b")),
    )
    found += [Case(n, small_spec(model, "f64", count, d), mesh) for n, mesh, count, d in more]
    return found


def check_counts(found: Outcome, steps: int) -> None:
    """Messages and collectives of the first stage are those of the plan; so is its arena."""
    planned: dict[int, tuple[int, int]] = {}
    for each in found.plan.collectives:
        if each.entry == "train":
            calls, _ = planned.get(each.site, (0, 0))
            planned[each.site] = (calls + each.calls * steps, each.bytes)
    assert found.told.counted == planned
    trained = [c for c in found.plan.collectives if c.entry == "train"]
    assert found.told.copied == sum(c.calls * c.copied for c in trained) * steps
    assert any(each.kind == "send" for each in found.plan.collectives)
    assert found.told.arena_bytes == found.plan.arena_bytes


@pytest.mark.parametrize("model", [pytest.param("llama", marks=pytest.mark.long), "gpt"])
def test_pipelines_compute_the_same_numbers(model: str) -> None:
    function = partial(llama if model == "llama" else gpt, shape=Shape(eps=1e-5, theta=500_000.0))
    given = batches()
    doubled = [b._replace(weights=b.weights.double()) for b in given]
    expected = train(function, beginning(model), doubled, recipe(model))
    outcomes = run_cases(cases(model), layers(beginning(model)), given)
    worst = {
        f"{name}: {what}": error
        for name, outcome in outcomes.items()
        for what, error in errors(outcome, expected).items()
        if not error <= TOLERANCE
    }
    assert worst == {}
    for outcome in outcomes.values():
        check_counts(outcome, len(given))
