"""Attention along a divided sequence, run by processes that exchange what it needs."""

from __future__ import annotations

import pytest
import torch

from tests.oracle.compiled import Case, Outcome, run_cases
from tests.oracle.reference import Batch
from tests.oracle.small_specs import small_spec
from tests.oracle.test_same_numbers import check_counts

BATCH, SEQ = 4, 16
WAYS = ("gather", "ring", "exchange")
MESHES = ("context=2", "context=4", "context=2,tensor=2", "data=2,context=2")


def spec(model: str, *directives: str) -> str:
    """A small model in fp64, with two micro-batches."""
    text = small_spec(model, "f64", 2, "\n  ".join(directives))
    return text.replace("seq: 6", f"seq: {SEQ}").replace("batch: 16", f"batch: {BATCH}")


def batches() -> list[Batch]:
    """Tokens, and weights that differ from one to the next."""
    torch.manual_seed(0)
    shape = (BATCH, SEQ)
    return [
        Batch(torch.randint(256, shape), torch.randint(256, shape), torch.rand(shape))
        for _ in range(2)
    ]


def apart(found: Outcome, expected: Outcome) -> dict[str, float]:
    """How far what a run left is from another's, relative."""
    pairs = {
        "loss": (torch.tensor(found.told.losses), torch.tensor(expected.told.losses)),
        "norm": (torch.tensor(found.told.grad_norms), torch.tensor(expected.told.grad_norms)),
        **{name: (found.first[name], value) for name, value in expected.first.items()},
        **{f"last {name}": (found.last[name], value) for name, value in expected.last.items()},
    }
    scale = max(float(value.norm()) for value in expected.first.values())
    return {
        name: float((mine - theirs).norm() / max(float(theirs.norm()), 1e-3 * scale))
        for name, (mine, theirs) in pairs.items()
    }


@pytest.mark.parametrize("model", ["llama", pytest.param("gpt", marks=pytest.mark.long)])
def test_every_way_trains_as_one_device_does(model: str) -> None:
    way_of = {
        f"{mesh} by {way}": Case(
            f"{mesh} by {way}", spec(model, "shard seq over context", f"context: {way}"), mesh
        )
        for way in WAYS
        for mesh in (MESHES if model == "llama" else MESHES[1:2])
    }
    cases = [Case("one", spec(model), "1"), *way_of.values()]
    outcomes = run_cases(cases, None, batches())
    for name in way_of:
        told = apart(outcomes[name], outcomes["one"])
        assert {what: error for what, error in told.items() if not error <= 1e-11} == {}, name
        check_counts(outcomes[name], 2)


def test_dropout_falls_on_the_same_tokens() -> None:
    lora = "lora body.*.attn.{wq, wo} {\n    rank: 2\n    alpha: 4\n    dropout: 0.4\n  }"
    adapter = f"adapter adapted on llama3_8b {{\n  freeze *\n  {lora}\n}}\n\ntrain"

    def adapted(*directives: str) -> str:
        text = spec("llama", *directives).replace("train run: llama3_8b", "train run: adapted")
        return text.replace("train", adapter, 1)

    sequence = ("shard seq over context", "context: ring")
    cases = [
        Case("one", adapted(), "1"),
        *(Case(mesh, adapted(*sequence), mesh) for mesh in ("context=4", "context=2,tensor=2")),
    ]
    outcomes = run_cases(cases, None, batches())
    for case in cases[1:]:
        told = apart(outcomes[case.name], outcomes["one"])
        assert {what: error for what, error in told.items() if not error <= 1e-11} == {}, case.name


def test_key_heads_are_copied_to_more_ranks_than_there_are_of_them() -> None:
    def few(*directives: str) -> str:
        return spec("llama", *directives).replace("kv_heads = 4", "kv_heads = 2")

    sequence = "shard seq over context"
    cases = [
        Case("one", few(), "1"),
        Case("heads exchanged", few(sequence, "context: exchange"), "context=4"),
        Case("heads divided", few("shard seq over tensor elsewhere"), "tensor=4"),
    ]
    outcomes = run_cases(cases, None, batches())
    for case in cases[1:]:
        told = apart(outcomes[case.name], outcomes["one"])
        assert {what: error for what, error in told.items() if not error <= 1e-11} == {}, case.name
        check_counts(outcomes[case.name], 2)
