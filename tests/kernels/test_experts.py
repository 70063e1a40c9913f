"""The kernels of experts do, for any choice, what loops over single rows do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fllmc.kernels import experts
from fllmc.kernels import torch_ops as kernels

TOLERANCE = 1e-12


@st.composite
def choices(draw: st.DrawFn) -> tuple[Tensor, int]:
    """(index [sequences, tokens, choices], number of experts); an expert may stand twice."""
    sequences, tokens, each = (draw(st.integers(1, 4)) for _ in range(3))
    experts = draw(st.sampled_from((1, 2, 4, 6)))
    seed = draw(st.integers(0, 1000))
    shape = (sequences, tokens, each)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(experts, shape, generator=generator), experts


def rows_of(index: Tensor, experts: int, groups: int, slots: int) -> list[list[tuple[int, int]]]:
    """(choice, row) of all choices that have one, for each sequence, by the words of the ops."""
    found: list[list[tuple[int, int]]] = []
    for sequence in index.flatten(1).tolist():
        pairs: list[tuple[int, int]] = []
        for group in range(groups):
            row = group * len(sequence)
            for expert in range(group * experts // groups, (group + 1) * experts // groups):
                mine = [n for n, chosen in enumerate(sequence) if chosen == expert]
                if slots:
                    pairs += [(n, expert * slots + place) for place, n in enumerate(mine[:slots])]
                    continue
                pairs += [(n, row + place) for place, n in enumerate(mine)]
                row += len(mine)
        found.append(pairs)
    return found


@given(choices(), st.integers(0, 3), st.booleans(), st.booleans(), st.booleans())
def test_tokens_go_to_their_rows_and_back(
    drawn: tuple[Tensor, int], slots: int, grouped: bool, own: bool, part: bool
) -> None:
    index, experts = drawn
    sequences, tokens, each = index.shape
    groups = 2 if grouped and not slots and experts % 2 == 0 else 1
    total = tokens * each
    whole = experts * slots if slots else groups * total
    halved = part and whole % 2 == 0
    first, count = (whole // 2, whole // 2) if halved else (0, whole)
    value = torch.randn(sequences, total if own else tokens, 3, dtype=torch.float64)
    out = torch.full((sequences, count, 3), torch.nan, dtype=torch.float64)
    flat = index.flatten(1)
    kernels.dispatch(value, flat, experts, groups, slots, first, out)
    wanted = torch.zeros(sequences, whole, 3, dtype=torch.float64)
    rows = torch.randn(sequences, whole, 3, dtype=torch.float64)
    back = torch.zeros_like(value)
    for sequence, pairs in enumerate(rows_of(index, experts, groups, slots)):
        for n, row in pairs:
            token = n if own else n // each
            wanted[sequence, row] = value[sequence, token]
            if first <= row < first + count:
                back[sequence, token] += rows[sequence, row]
    assert torch.equal(out, wanted[:, first : first + count])
    found = torch.full_like(value, torch.nan)
    held = rows[:, first : first + count]
    kernels.combine(held, flat, experts, groups, slots, first, found)
    torch.testing.assert_close(found, back, rtol=0, atol=TOLERANCE)


@given(choices(), st.booleans(), st.integers(0, 2))
def test_runs_of_rows_meet_their_own_matrices(
    drawn: tuple[Tensor, int], part: bool, spare: int
) -> None:
    index, experts = drawn
    flat = index.flatten(1)
    half = experts // 2 if part and experts % 2 == 0 else 0
    first, mine = half, experts - half
    counts = torch.full((len(flat), mine), -1)
    kernels.tally(flat, first, counts)
    room = flat.shape[1] + spare
    a = torch.randn(len(flat), room, 2, dtype=torch.float64)
    b = torch.randn(len(flat), room, 3, dtype=torch.float64)
    weight = torch.randn(mine, 2, 3, dtype=torch.float64)
    out = torch.full_like(b, torch.nan)
    kernels.grouped_dot(a, weight, flat, first, out)
    outer = torch.full_like(weight, torch.nan)
    kernels.grouped_outer(a, b, flat, first, outer)
    wanted, wanted_outer = torch.zeros_like(out), torch.zeros_like(outer)
    for sequence, chosen in enumerate(flat.tolist()):
        owners = sorted(expert - first for expert in chosen if expert >= first)
        assert counts[sequence].tolist() == [owners.count(expert) for expert in range(mine)]
        for row, expert in enumerate(owners):
            wanted[sequence, row] = a[sequence, row] @ weight[expert]
            wanted_outer[expert] += torch.outer(a[sequence, row], b[sequence, row])
    torch.testing.assert_close(out, wanted, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(outer, wanted_outer, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_the_call_for_many_runs_means_what_the_loop_does(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(5, (3, 16), generator=generator)
    index[index == 1] = 4  # one expert of those held is never chosen, and one is not held
    rows, columns, weight = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((3, 16, 8), (3, 16, 24), (4, 8, 24))
    )
    out, outer = torch.full_like(columns, torch.nan), torch.full_like(weight, torch.nan)
    kernels.grouped_dot(rows, weight, index, 1, out)
    kernels.grouped_outer(rows, columns, index, 1, outer)
    order, ends = experts.by_expert(index, 4, 1, 16)
    found = torch.full_like(out, torch.nan)
    experts.through_one_call(
        rows.flatten(0, 1), weight, order, ends, found.view(-1, columns.shape[2])
    )
    torch.testing.assert_close(found, out)
    sums = experts.sums_in_one_call(rows.flatten(0, 1), columns.flatten(0, 1), order, ends)
    torch.testing.assert_close(sums, outer)
    assert not outer[0].any()


@given(st.lists(st.integers(-2, 2), min_size=3, max_size=8), st.integers(1, 3))
def test_of_equal_scores_the_first_is_chosen(scores: list[int], k: int) -> None:
    x = torch.tensor([scores], dtype=torch.float64)
    values, indices = torch.empty(1, k, dtype=torch.float64), torch.empty(1, k, dtype=torch.int64)
    kernels.top_k(x, 1, out=(values, indices))
    wanted = sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:k]
    assert indices[0].tolist() == wanted
    assert values[0].tolist() == [scores[n] for n in wanted]
