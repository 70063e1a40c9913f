"""Rows reach the ranks of their experts and come back, and no other row is moved."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fllmc.kernels import torch_ops as kernels
from fllmc.runtime.row_exchange import AllToAll, exchange_rows

COLUMNS = 3


class Group:
    """An all-to-all among threads, which is given sizes as the library is."""

    def __init__(self, ranks: int) -> None:
        self.barrier = Barrier(ranks, timeout=20)
        self.posted: list[list[Tensor]] = [[] for _ in range(ranks)]

    def of(self, rank: int, swapped: bool = False) -> AllToAll:
        """The call of one rank; `swapped` gives what comes for what goes."""

        def move(received: Tensor, sent: Tensor, come: list[int], to: list[int]) -> None:
            self.posted[rank] = list(sent.split(come if swapped else to))
            self.barrier.wait()
            mine = [parts[rank] for parts in self.posted]
            assert [len(part) for part in mine] == come
            received.copy_(torch.cat(mine))
            self.barrier.wait()

        return move


def together(ranks: int, work: Callable[[int], None]) -> list[BaseException]:
    """The work of all ranks side by side; what went wrong on some."""
    wrong: list[BaseException] = []

    def tried(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:
            wrong.append(error)

    threads = [Thread(target=tried, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def choices(ranks: int, own: int, room: int, each: int, seed: int) -> Tensor:
    """The experts that all sequences of a group choose, `each` of them on a rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(ranks * each, (ranks * own, room), generator=generator)


FEW = st.integers(1, 4)


@given(FEW, FEW, FEW, FEW, st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_rows_go_where_the_padded_exchange_puts_them(
    ranks: int, own: int, room: int, each: int, seed: int
) -> None:
    index = choices(ranks, own, room, each, seed)
    experts = ranks * each
    tokens = torch.randn(ranks * own, room, COLUMNS, dtype=torch.float64)
    packed = torch.empty_like(tokens)
    kernels.dispatch(tokens, index, experts, 1, 0, 0, packed)
    wanted = torch.empty(len(index), ranks * room, COLUMNS, dtype=torch.float64)
    kernels.dispatch(tokens, index, experts, ranks, 0, 0, wanted)
    group, sent = Group(ranks), dict[tuple[int, bool], int]()
    found = [torch.full((len(index), room, COLUMNS), torch.nan).double() for _ in range(ranks)]
    again = [torch.full((own, room, COLUMNS), torch.nan).double() for _ in range(ranks)]

    def work(rank: int) -> None:
        mine = packed[rank * own : (rank + 1) * own]
        scratch = torch.full(((ranks + 1) * mine.numel(),), torch.nan).double()
        for back, source, out in ((False, mine, found[rank]), (True, found[rank], again[rank])):
            move = group.of(rank)
            sent[rank, back] = exchange_rows(move, source, index, experts, rank, back, out, scratch)

    assert together(ranks, work) == []
    for rank in range(ranks):
        assert torch.equal(found[rank], wanted[:, rank * room : (rank + 1) * room])
        assert torch.equal(again[rank], packed[rank * own : (rank + 1) * own])
        assert sent[rank, False] == own * room
        assert sent[rank, True] == int((index // each == rank).sum())


def test_sizes_for_the_wrong_direction_do_not_pass() -> None:
    index = torch.tensor([[0, 0, 0], [0, 0, 1]])
    group = Group(2)

    def work(rank: int) -> None:
        given, out = torch.zeros(1, 3, COLUMNS), torch.zeros(2, 3, COLUMNS)
        move = group.of(rank, swapped=True)
        exchange_rows(move, given, index, 2, rank, False, out, torch.zeros(9 * COLUMNS))

    assert together(2, work)


@pytest.mark.parametrize("back", [False, True])
def test_nothing_to_move_is_moved(back: bool) -> None:
    """All choices are of the other rank's expert."""
    index = torch.ones(2, 3, dtype=torch.int64)
    group = Group(2)
    sizes = (1, 2) if not back else (2, 1)
    outs = [torch.full((sizes[1], 3, COLUMNS), torch.nan) for _ in range(2)]

    def work(rank: int) -> None:
        given, scratch = torch.ones(sizes[0], 3, COLUMNS), torch.zeros(9 * COLUMNS)
        exchange_rows(group.of(rank), given, index, 2, rank, back, outs[rank], scratch)

    assert together(2, work) == []
    assert outs[1].eq(1).all()
    assert outs[0].eq(1 if back else 0).all()
