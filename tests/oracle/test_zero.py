"""Divided state, run by processes: the same numbers, and the bytes and calls that the plan says."""

from __future__ import annotations

import torch

from tests.oracle.compiled import run_cases
from tests.oracle.reference import Batch
from tests.oracle.techniques import combined
from tests.oracle.test_context import apart
from tests.oracle.test_same_numbers import check_counts

COMBINATIONS = (
    ("zero 1", "accumulate"),
    ("zero 2", "accumulate", "data"),
    ("zero 3", "accumulate", "tensor"),
    ("zero 3", "data", "recompute"),
    ("zero 2", "sequence"),
)


def batches() -> list[Batch]:
    """Tokens for two steps, and weights that differ from one to the next."""
    torch.manual_seed(0)
    shape = (16, 8)
    return [
        Batch(torch.randint(256, shape), torch.randint(256, shape), torch.rand(shape))
        for _ in range(2)
    ]


def test_runs_equal_that_of_one_device() -> None:
    one = combined(())._replace(name="one")
    cases = [combined(names) for names in COMBINATIONS]
    outcomes = run_cases([one, *cases], None, batches())
    for case in cases:
        told = apart(outcomes[case.name], outcomes["one"])
        assert {what: error for what, error in told.items() if not error <= 1e-11} == {}, case.name
        check_counts(outcomes[case.name], 2)
