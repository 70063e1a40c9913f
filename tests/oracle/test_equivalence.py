"""Every technique, every two and random combinations compute the one-device step.

Losses, gradients (by AdamW's first moments after one step), states and parameters after three steps
are compared with the same spec compiled for one device without any of the techniques but what is
frozen or adapted. That one-device step is held against plain PyTorch in `test_same_numbers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.oracle.compiled import Outcome, run_cases
from tests.oracle.reference import Batch
from tests.oracle.techniques import BATCH, DEVICES, alone, combined, drawn, pairs, singles

TOLERANCE = {"f64": 1e-11, "f32": 2e-5}
VOCAB, SEQ = 256, 8
EVERY = 47
"""Of pairs, one in so many is checked in the short run."""
PARTS = 10
FOUND = (
    ("tensor", "four stages", "lora"),
    ("experts", "zb-h1", "offload", "frozen"),
    ("auto", "budget", "frozen stack"),
)
"""Combinations that once did not compile, or did not end, when all pairs of their parts did."""


def batches() -> list[Batch]:
    """Three batches whose weights differ and are partly zero."""
    generator = torch.Generator().manual_seed(7)
    shape = (BATCH, SEQ)
    found: list[Batch] = []
    for _ in range(3):
        weights = torch.rand(shape, generator=generator)
        weights *= torch.rand(shape, generator=generator) < 0.7
        weights[BATCH // 2 :] *= 0.25
        tokens, targets = (torch.randint(VOCAB, shape, generator=generator) for _ in range(2))
        found.append(Batch(tokens, targets, weights))
    return found


def errors(found: Outcome, wanted: Outcome) -> dict[str, float]:
    """The relative error, by norm, of everything that training gives."""
    told = {
        f"{what} {step}": abs(mine - other) / abs(other)
        for what in ("losses", "grad_norms")
        for step, (mine, other) in enumerate(
            zip(getattr(found.told, what), getattr(wanted.told, what), strict=True)
        )
    }
    for when in ("first", "last"):
        mine, other = getattr(found, when), getattr(wanted, when)
        assert mine.keys() == other.keys()
        whole = torch.cat([value.flatten() for value in other.values()]).norm().item()
        told |= {f"{when} {name}": apart(mine[name], other[name], whole) for name in other}
    return told


def apart(found: Tensor, wanted: Tensor, whole: float) -> float:
    """The distance relative to the tensor, or to a millionth of all of them where it is smaller."""
    scale = max(wanted.norm().item(), 1e-6 * whole)
    return (found.double() - wanted.double()).norm().item() / scale


def check(combinations: Sequence[tuple[str, ...]], dtype: str = "f64") -> None:
    """All combinations, by name, equal one device."""
    cases = [combined(names, dtype) for names in combinations]
    single = {alone(names, dtype).name: alone(names, dtype) for names in combinations}
    references = run_cases(
        [case._replace(name=f"one device: {case.name}") for case in single.values()], None,
        batches(), DEVICES,
    )  # fmt: skip
    outcomes = run_cases(cases, None, batches(), DEVICES)
    worst: dict[str, str] = {}
    for names, case in zip(combinations, cases, strict=True):
        wanted = references[f"one device: {alone(names).name}"]
        told = errors(outcomes[case.name], wanted)
        what = max(told, key=lambda key: told[key])
        if not told[what] <= TOLERANCE[dtype]:
            worst[case.name] = f"{what}: {told[what]:.1e}"
    assert worst == {}, worst


def test_every_technique() -> None:
    check(singles())


def test_some_pairs() -> None:
    check(pairs()[::EVERY])


def test_some_combinations() -> None:
    check([*drawn(3, seed=1), *FOUND])


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_every_pair(part: int) -> None:
    check(pairs()[part::PARTS])


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_a_hundred_combinations(part: int) -> None:
    check(drawn(100, seed=2)[part::PARTS])


@pytest.mark.long
def test_in_single_precision() -> None:
    check([*singles(), *drawn(30, seed=3)], "f32")
