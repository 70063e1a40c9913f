"""Collectives over the mesh by torch.distributed: gloo on CPU, NCCL on GPU, by one schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from fllmc.ir.types import Mesh
from fllmc.runtime.adjoining import adjoining
from fllmc.runtime.flight import Handle, Pending
from fllmc.runtime.ring import Ring
from fllmc.runtime.row_exchange import exchange_rows

# Their names since torch 2.13, and before.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


KINDS = ((1, "forward"), (1, "backward"), (-1, "forward"), (-1, "backward"))
"""Messages along a pipeline axis: up or down the ranks, and of which pass."""


class Line:
    """The ranks along a pipeline axis, for messages of one pass in one direction."""

    def __init__(self, group: dist.ProcessGroup, ranks: Sequence[int], position: int) -> None:
        self.group, self.ranks, self.position = group, ranks, position

    def send(self, to: int, tensor: torch.Tensor, tag: int) -> Handle:
        """Begin to send."""
        return begun(dist.isend(tensor, self.ranks[to], self.group, tag))

    def receive(self, giver: int, tensor: torch.Tensor, tag: int) -> Handle:
        """Begin to receive."""
        return begun(dist.irecv(tensor, self.ranks[giver], self.group, tag))


def begun(work: dist.Work | None) -> Handle:
    """The handle of a transfer that this rank takes part in."""
    assert work is not None
    return work


class Communicator:
    """Process groups for the axes of a mesh. torch.distributed must be initialised.

    All ranks must make their groups in the same order, so the axes that a plan uses are given at
    the start. `copied` counts the bytes that gathers, scatters and coalesced collectives copy.
    """

    def __init__(
        self,
        mesh: Mesh,
        rank: int,
        axes: tuple[tuple[str, ...], ...],
        some: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = (),
        pipes: tuple[str, ...] = (),
    ):
        self.copied = 0
        self.groups: dict[tuple[str, ...], dist.ProcessGroup] = {}
        self.sizes: dict[tuple[str, ...], int] = {}
        self.positions: dict[tuple[str, ...], int] = {}
        self.ranks: dict[tuple[str, ...], tuple[int, ...]] = {}
        place = mesh.coordinates(rank)
        for names in sorted(set(axes)):
            self.sizes[names] = mesh.extent(names)
            self.positions[names] = mesh.position(place, names)
            for ranks in mesh.groups(names):
                group = dist.new_group(list(ranks))
                if rank in ranks and isinstance(group, dist.ProcessGroup):
                    self.groups[names] = group
                    self.ranks[names] = ranks
        self.some: dict[tuple[tuple[str, ...], tuple[int, ...]], dist.ProcessGroup] = {}
        for names, among in sorted(set(some)):
            for ranks in mesh.groups(names):
                chosen = [ranks[position] for position in among]
                group = dist.new_group(chosen)
                if rank in chosen and isinstance(group, dist.ProcessGroup):
                    self.some[names, among] = group
        self.lines: dict[tuple[str, int, str], Line] = {}
        for name in sorted(set(pipes)):
            for ranks in mesh.groups((name,)):
                for kind in KINDS:
                    group = dist.new_group(list(ranks))
                    if rank in ranks and isinstance(group, dist.ProcessGroup):
                        self.lines[name, *kind] = Line(group, ranks, ranks.index(rank))

    def ring(self, axes: tuple[str, ...]) -> Ring:
        """The axes' group as a ring."""
        return Ring(self.groups[axes], self.ranks[axes], self.positions[axes])

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON-like value, in rank order, on every rank; so it is a barrier, too."""
        mine = torch.frombuffer(bytearray(msgspec.json.encode(value)), dtype=torch.uint8)
        lengths = torch.zeros(dist.get_world_size(), dtype=torch.int64)
        all_gather_single(lengths, torch.tensor([mine.numel()]))
        longest = int(lengths.max())
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: mine.numel()] = mine
        found = torch.zeros(len(lengths) * longest, dtype=torch.uint8)
        all_gather_single(found, padded)
        whole = zip(found.view(len(lengths), longest), lengths.tolist(), strict=True)
        return [msgspec.json.decode(row[:length].numpy().tobytes()) for row, length in whole]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        found = torch.tensor([int(flag)])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found.item())

    def all_reduce(
        self,
        axes: tuple[str, ...],
        tensor: torch.Tensor,
        combine: str,
        among: tuple[int, ...] = (),
    ) -> Handle:
        """Combine over the axes' group, or the ranks at some positions of it, in place."""
        group = self.some[axes, among] if among else self.groups[axes]
        return Pending(dist.all_reduce(tensor, OPERATIONS[combine], group=group, async_op=True))

    def send(
        self, axes: tuple[str, ...], to: int, tensor: torch.Tensor, tag: int, way: str
    ) -> Handle:
        """Begin to send to the rank at a position of a pipeline axis."""
        return self._line(axes, to, True, way).send(to, tensor, tag)

    def receive(
        self, axes: tuple[str, ...], giver: int, tensor: torch.Tensor, tag: int, way: str
    ) -> Handle:
        """Begin to receive from the rank at a position of a pipeline axis."""
        return self._line(axes, giver, False, way).receive(giver, tensor, tag)

    def position(self, axes: tuple[str, ...]) -> int:
        """This rank's position on a pipeline axis."""
        (name,) = axes
        return self.lines[name, 1, "forward"].position

    def meet(
        self, axes: tuple[str, ...], channels: Iterable[tuple[int, int, str]], like: torch.Tensor
    ) -> None:
        """Open this rank's channels, each (sender, receiver, pass), with a tensor like this.

        NCCL makes a channel when it is first used, and that waits for the other side. All ranks
        open theirs in one order, so none waits for one that waits for another.
        """
        own = self.position(axes)
        for sender, receiver, way in sorted(channels):
            if sender == own:
                self.send(axes, receiver, like, 0, way).wait()
            else:
                self.receive(axes, sender, like, 0, way).wait()

    def _line(self, axes: tuple[str, ...], other: int, sends: bool, way: str) -> Line:
        """Messages of each pass, down the ranks and up, have a group each, so that none waits.

        NCCL tells messages of a group between two ranks apart by their order alone, and where the
        stages go there and back, both passes send the same way.
        """
        (name,) = axes
        up = other > self.position(axes)
        return self.lines[name, 1 if up == sends else -1, way]

    def all_gather(
        self,
        axes: tuple[str, ...],
        source: torch.Tensor,
        out: torch.Tensor,
        dim: int,
        scratch: torch.Tensor | None,
        zigzag: bool = False,
    ) -> Handle:
        """Put the group's parts together along a dim, as they lie but in the simplest case."""
        group = self.groups[axes]
        if dim == 0 and not zigzag:
            return Pending(all_gather_single(out, source.contiguous(), group=group, async_op=True))
        assert scratch is not None
        first, *rest = source.shape
        joined = scratch.view(self.sizes[axes] * first, *rest)  # gloo takes no stacked result
        parts = joined.view(self.sizes[axes], *source.shape)

        def place() -> None:
            if not zigzag:
                split = out.unflatten(dim, (self.sizes[axes], source.shape[dim]))
                self.copy_all([split], [parts.movedim(0, dim)])
                return
            for places, part in zip(dealt(out, dim, self.sizes[axes]), parts, strict=True):
                for spot, half in zip(places, part.chunk(2, dim), strict=True):
                    self.copy_all([spot], [half])

        work = all_gather_single(joined, source.contiguous(), group=group, async_op=True)
        return Pending(work, place)

    def coalesced(
        self,
        axes: tuple[str, ...],
        kind: str,
        sources: Sequence[torch.Tensor],
        outs: Sequence[torch.Tensor],
        dims: Sequence[int],
        scratch: torch.Tensor | None,
    ) -> Handle:
        """Several gathers or scatters along dims, or reductions (sum, max), as one.

        In `scratch` lie all values for a reduction, none if they are reduced where they adjoin;
        else this rank's parts, unless they adjoin, then all ranks' parts.
        """
        group, ranks = self.groups[axes], self.sizes[axes]
        if kind in OPERATIONS:
            return self._reduced(group, kind, sources, outs, scratch)
        assert scratch is not None
        parts = sources if kind == "all_gather" else outs
        count = sum(part.numel() for part in parts)
        packs = scratch.numel() > ranks * count
        mine = scratch[:count] if packs else adjoining(parts)
        joined = scratch[count:] if packs else scratch
        rows = joined.view(ranks, count)
        wholes = outs if kind == "all_gather" else sources
        split = [
            whole.unflatten(dim, (ranks, whole.shape[dim] // ranks)).movedim(dim, 0)
            for whole, dim in zip(wholes, dims, strict=True)
        ]
        if kind == "all_gather":
            if packs:
                self.copy_all(laid_flat(mine, sources), sources)
            work = all_gather_single(joined, mine, group=group, async_op=True)
            return Pending(work, lambda: self.copy_all(split, laid_flat(rows, sources)))
        self.copy_all(laid_flat(rows, outs), split)

        def keep() -> None:
            if scratch.device.type == "cpu":
                mine.copy_(rows[self.positions[axes]])
            if packs:
                self.copy_all(outs, laid_flat(mine, outs))

        if scratch.device.type == "cpu":  # gloo has no reduce_scatter
            return Pending(dist.all_reduce(joined, group=group, async_op=True), keep)
        return Pending(reduce_scatter_single(mine, joined, group=group, async_op=True), keep)

    def _reduced(
        self,
        group: dist.ProcessGroup,
        kind: str,
        sources: Sequence[torch.Tensor],
        outs: Sequence[torch.Tensor],
        scratch: torch.Tensor | None,
    ) -> Handle:
        """All sources combined over the group, in scratch or where they adjoin."""
        if scratch is None:
            flat = adjoining(sources)
            return Pending(dist.all_reduce(flat, OPERATIONS[kind], group=group, async_op=True))
        self.copy_all(laid_flat(scratch, sources), sources)
        work = dist.all_reduce(scratch, OPERATIONS[kind], group=group, async_op=True)
        return Pending(work, lambda: self.copy_all(outs, laid_flat(scratch, outs)))

    def copy_all(self, targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor]) -> None:
        """Copy each to its target, and count the bytes."""
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
            self.copied += target.numel() * target.element_size()

    def all_to_all(
        self,
        axes: tuple[str, ...],
        source: torch.Tensor,
        out: torch.Tensor,
        gathered: int,
        scattered: int,
        scratch: torch.Tensor,
    ) -> Handle:
        """Put the group's parts of dim `gathered` together, of this rank's part of `scattered`.

        `scratch` holds what is sent and what is received, each as large as `source`.
        """
        ranks = self.sizes[axes]
        parts = source.unflatten(scattered, (ranks, source.shape[scattered] // ranks))
        parts = parts.movedim(scattered, 0)
        send, receive = scratch[0].view(parts.shape), scratch[1].view(parts.shape)
        send.copy_(parts)
        split = out.unflatten(gathered, (ranks, source.shape[gathered]))
        work = dist.all_to_all_single(receive, send, group=self.groups[axes], async_op=True)

        def place() -> None:
            split.copy_(receive.movedim(0, gathered))

        return Pending(work, place)

    def exchange_rows(
        self,
        axes: tuple[str, ...],
        given: torch.Tensor,
        index: torch.Tensor,
        experts: int,
        back: bool,
        out: torch.Tensor,
        scratch: torch.Tensor,
    ) -> int:
        """Rows to the group's ranks by their experts, or back; see `row_exchange.py`."""

        def move(
            received: torch.Tensor, sent: torch.Tensor, come: list[int], to: list[int]
        ) -> None:
            dist.all_to_all_single(received, sent, come, to, group=self.groups[axes])

        position = self.positions[axes]
        return exchange_rows(move, given, index, experts, position, back, out, scratch)

    def reduce_scatter(
        self,
        axes: tuple[str, ...],
        source: torch.Tensor,
        out: torch.Tensor,
        dim: int,
        scratch: torch.Tensor | None,
        zigzag: bool = False,
    ) -> Handle:
        """Sum over the group, keep this rank's part of a dim.

        Scratch is as large as `source`. Without it `source` is read, or summed, where it is; so it
        must be of no use any more, and its first dim be the one.
        """
        group = self.groups[axes]
        if source.device.type == "cpu":  # gloo has no reduce_scatter
            whole = source if scratch is None else scratch.view(source.shape)
            if scratch is not None:
                self.copy_all([whole], [source])

            def keep() -> None:
                if zigzag:
                    mine = dealt(whole, dim, self.sizes[axes])[self.positions[axes]]
                    torch.cat(mine, dim, out=out)
                    return
                count = out.shape[dim]
                out.copy_(whole.narrow(dim, self.positions[axes] * count, count))

            return Pending(dist.all_reduce(whole, group=group, async_op=True), keep)
        if scratch is None:
            return Pending(reduce_scatter_single(out, source, group=group, async_op=True))
        first, *rest = out.shape
        joined = scratch.view(self.sizes[axes] * first, *rest)
        parts = joined.view(self.sizes[axes], *out.shape)
        if zigzag:
            for places, part in zip(dealt(source, dim, self.sizes[axes]), parts, strict=True):
                self.copy_all(part.chunk(2, dim), places)
        else:
            split = source.unflatten(dim, (self.sizes[axes], out.shape[dim]))
            self.copy_all([parts], [split.movedim(dim, 0)])
        return Pending(reduce_scatter_single(out, joined, group=group, async_op=True))


def laid_flat(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Stretches of the last dim of `flat`, one after another, with the shapes of these tensors."""
    start = 0
    for tensor in like:
        stop = start + tensor.numel()
        yield flat[..., start:stop].view((*flat.shape[:-1], *tensor.shape))
        start = stop


def dealt(whole: torch.Tensor, dim: int, ranks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The two stretches of a dim, dealt in zig-zag, that each rank has; see `ir/types.py`."""
    parts = whole.chunk(2 * ranks, dim)
    return [(parts[rank], parts[-1 - rank]) for rank in range(ranks)]
