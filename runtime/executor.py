"""Runs the generated code of a plan: one arena, views into it, and the entries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import Rope
from fllmc.ir.plan import ALIGNMENT, Plan, Stored
from fllmc.ir.types import Dim, Sizes
from fllmc.kernels import ring_attention, torch_ops
from fllmc.runtime.adjoining import adjoining
from fllmc.runtime.collectives import Collectives
from fllmc.runtime.flight import Copies, Handle, Side, beside
from fllmc.runtime.pipelining import Turn, received, sent, take_turns

DTYPES: Mapping[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


class Executor:
    """One rank's arena and its entries.

    `source` is the generated schedule, which the caller has checked against the plan. `counted`
    holds, for each collective site, the calls made and the bytes of the last one, `ragged` the
    bytes of all calls where they differ from call to call; `runs` how often each entry ran.
    `allocated_bytes` is the arena with what it takes to align it. `host_arena` is what waits in
    host memory, pinned for a GPU; `copied` holds calls and bytes of all copies there and back,
    `in_flight` how many transfers are under way.
    """

    def __init__(
        self,
        plan: Plan,
        source: str,
        rank: int = 0,
        comm: Collectives | None = None,
        device: str = "cpu",
    ):
        if plan.program.mesh.size > 1 and comm is None:
            raise InternalError("a plan for several ranks needs a communicator")
        plan = plan.of_rank(rank)
        self.plan = plan
        self.sizes = plan.program.sizes
        self.rank = rank
        self.coordinates = plan.program.mesh.coordinates(rank)
        self.comm = comm
        self.device = torch.device(device)
        raw = torch.zeros(plan.arena_bytes + ALIGNMENT, dtype=torch.uint8, device=self.device)
        skip = -raw.data_ptr() % ALIGNMENT
        self.allocated_bytes = raw.numel()
        self.arena = raw[skip : skip + plan.arena_bytes]
        pinned = self.device.type == "cuda"
        waits = torch.zeros(plan.host_bytes + ALIGNMENT, dtype=torch.uint8, pin_memory=pinned)
        self.host_arena = waits[-waits.data_ptr() % ALIGNMENT :][: plan.host_bytes]
        self.copied: dict[str, tuple[int, int]] = {"to_host": (0, 0), "from_host": (0, 0)}
        self.in_flight = 0
        self._copies = Copies(self.device)
        self.host: list[float] = []
        self.slots: dict[str, int] = {}
        self.counted: dict[int, tuple[int, int]] = {}
        self.ragged: dict[int, int] = {}
        self.runs: dict[str, int] = dict.fromkeys(plan.program.entries, 0)
        self.tables: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self._sites = {c.site: c.axes for c in plan.collectives}
        self._met: set[tuple[tuple[str, ...], tuple[int, int, str]]] = set()
        self._ways = {c.site: c.way for c in plan.collectives}
        self._among = {c.site: c.among for c in plan.collectives}
        self._stored = {stored.name: stored for stored in plan.stored}
        self._views: dict[str, torch.Tensor] = {}
        namespace: dict[str, Any] = {"__name__": "fllmc_schedule"}
        with torch.no_grad():
            exec(compile(source, "schedule/step.py", "exec"), namespace)
            self.entries: Mapping[str, Callable[[], None]] = namespace["entries"](self)

    def run(self, entry: str, **scalars: float) -> None:
        """Run an entry with its host scalars (such as `step`). Dropout is on in `train` alone."""
        given = {"training": float(entry == "train"), **scalars}
        for name, value in given.items():
            if name in self.slots:
                self.host[self.slots[name]] = float(value)
        self.runs[entry] += 1
        with torch.no_grad():
            self.entries[entry]()
        if self.in_flight:
            raise InternalError(f"{entry} ends with {self.in_flight} transfers under way")

    def tensor(self, name: str) -> torch.Tensor:
        """This rank's part of a stored tensor: a parameter, state, data input or output."""
        return self.stored(name)

    def description(self, name: str) -> Stored:
        """The plan's entry for a stored tensor."""
        return self._stored[name]

    # What generated code calls:

    def view(self, dtype: str, offset: int, shape: Sequence[int]) -> torch.Tensor:
        """A tensor at a byte offset of the arena."""
        kind = DTYPES[dtype]
        count = 1
        for extent in shape:
            count *= extent
        return self.arena[offset : offset + count * kind.itemsize].view(kind).view(tuple(shape))

    def adjoining(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """One flat view of tensors of the arena that lie one behind another."""
        return adjoining(tensors)

    def waiting(self, dtype: str, offset: int, shape: Sequence[int]) -> torch.Tensor:
        """A tensor at a byte offset of the host memory."""
        kind = DTYPES[dtype]
        stretch = self.host_arena[offset : offset + math.prod(shape) * kind.itemsize]
        return stretch.view(kind).view(tuple(shape))

    def to_host(self, source: torch.Tensor, target: torch.Tensor) -> Handle:
        """Begin to copy to host memory."""
        return self._copy("to_host", source, target)

    def from_host(self, source: torch.Tensor, target: torch.Tensor) -> Handle:
        """Begin to copy back from host memory."""
        return self._copy("from_host", source, target)

    def _copy(self, way: str, source: torch.Tensor, target: torch.Tensor) -> Handle:
        calls, moved = self.copied[way]
        self.copied[way] = calls + 1, moved + source.numel() * source.element_size()
        return self._begun(self._copies.begin(source, target))

    def wait(self, handle: Handle) -> None:
        """Go on when what was begun is done."""
        handle.wait()
        self.in_flight -= 1

    def _begun(self, handle: Handle) -> Handle:
        self.in_flight += 1
        return handle

    def stored(self, name: str) -> torch.Tensor:
        """The view of a stored tensor."""
        if name not in self._views:
            found = self._stored[name]
            shape = self.sizes.local_shape(found.type)
            self._views[name] = self.view(found.type.dtype, found.offset, shape)
        return self._views[name]

    def slot(self, name: str = "") -> int:
        """A place for a host scalar; the same name is the same place."""
        if name and name in self.slots:
            return self.slots[name]
        self.host.append(0.0)
        if name:
            self.slots[name] = len(self.host) - 1
        return len(self.host) - 1

    def cell(self) -> torch.Tensor:
        """A host scalar as a tensor that is filled before use."""
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def coordinate(self, axes: tuple[str, ...]) -> int:
        """This rank's position among the axes."""
        return self.plan.program.mesh.position(self.coordinates, axes)

    def number(self, value: float, like: torch.Tensor) -> torch.Tensor:
        """A host scalar as a tensor without dims."""
        return torch.full((), value, dtype=like.dtype, device=like.device)

    def stretches(self, dim: str, axes: tuple[str, ...]) -> tuple[range, ...]:
        """The positions of a dim that this rank holds when the axes deal it out."""
        return self.sizes.stretches(Dim(dim, axes), self.coordinates)

    def dealt(self, extent: int, axes: tuple[str, ...]) -> tuple[range, ...]:
        """The positions, of `extent` that the axes deal out, which this rank gets."""
        return Sizes({"": extent}, self.sizes.mesh).stretches(Dim("", axes), self.coordinates)

    def held(self, dim: str, axes: tuple[str, ...]) -> list[tuple[range, ...]]:
        """The positions of a dim that each rank along the axes holds, in their order."""
        mesh = self.sizes.mesh
        (mine,) = (group for group in mesh.groups(axes) if self.rank in group)
        return [self.sizes.stretches(Dim(dim, axes), mesh.coordinates(rank)) for rank in mine]

    def moved(self, stretches: tuple[range, ...], by: int) -> tuple[range, ...]:
        """The positions, so much further on."""
        return tuple(range(stretch.start + by, stretch.stop + by) for stretch in stretches)

    def positions(self, stretches: tuple[range, ...], each: int, first: int) -> torch.Tensor:
        """The positions as a tensor: of groups of so many, counted from `first`."""
        held = [at // each + first for stretch in stretches for at in stretch]
        return torch.tensor(held, device=self.device)

    def rope_table(
        self, stretches: tuple[range, ...], width: int, dtype: str, **how: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for rotary positions, made once; `how` is as attributes of `rope`."""
        key = (stretches, width, dtype, *how.items())
        if key not in self.tables:
            rope = Rope("", "", **how)
            stop = max(stretch.stop for stretch in stretches)
            given = (stop, rope.speeds(width), DTYPES[dtype], self.device, rope.magnitude)
            whole = torch_ops.rope_table(*given)
            self.tables[key] = (
                torch.cat([whole[0][s.start : s.stop] for s in stretches]),
                torch.cat([whole[1][s.start : s.stop] for s in stretches]),
            )
        return self.tables[key]

    def tiles(
        self,
        count: int,
        rows: int,
        whole: Sequence[torch.Tensor],
        scratch: Sequence[torch.Tensor],
    ) -> list[tuple[torch.Tensor, ...]]:
        """Tuples of tile views: parts of the whole tensors, and as much of the scratch ones."""
        found: list[tuple[torch.Tensor, ...]] = []
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            parts = [tensor[start:stop] for tensor in whole]
            found.append((*parts, *(tensor[: stop - start] for tensor in scratch)))
        return found

    def all_reduce(self, site: int, tensor: torch.Tensor, combine: str) -> Handle:
        """Combine a tensor over a site's axes, in place."""
        self._count(site, tensor)
        assert self.comm is not None
        return self._begun(
            self.comm.all_reduce(self._sites[site], tensor, combine, self._among[site])
        )

    def all_gather(
        self,
        site: int,
        source: torch.Tensor,
        out: torch.Tensor,
        dim: int,
        scratch: torch.Tensor | None,
        zigzag: bool = False,
    ) -> Handle:
        """Gather a dim over a site's axes."""
        self._count(site, out)
        assert self.comm is not None
        return self._begun(
            self.comm.all_gather(self._sites[site], source, out, dim, scratch, zigzag)
        )

    def reduce_scatter(
        self,
        site: int,
        source: torch.Tensor,
        out: torch.Tensor,
        dim: int,
        scratch: torch.Tensor | None,
        zigzag: bool = False,
    ) -> Handle:
        """Sum over a site's axes and scatter a dim."""
        self._count(site, source)
        assert self.comm is not None
        return self._begun(
            self.comm.reduce_scatter(self._sites[site], source, out, dim, scratch, zigzag)
        )

    side = Side

    def beside(
        self,
        ahead: Sequence[Side],
        turns: Sequence[Callable[[], None]],
        behind: Sequence[Side],
    ) -> None:
        """Run the turns of a stack, with what runs beside them."""
        beside(ahead, turns, behind)

    turn = Turn

    def take_turns(self, turns: Sequence[Turn]) -> None:
        """Carry out a pipeline stage's turns."""
        self._meet(turns)
        take_turns(turns, self._send, self._receive)

    def _meet(self, turns: Sequence[Turn]) -> None:
        """Open the channels of these turns, before the first of them."""
        assert self.comm is not None
        found: dict[tuple[str, ...], set[tuple[int, int, str]]] = {}
        for sends, transfers in ((False, received(turns)), (True, sent(turns))):
            for site, _, other, _ in transfers:
                axes, way = self._sites[site], self._ways[site]
                own = self.comm.position(axes)
                channel = (own, other, way) if sends else (other, own, way)
                if (axes, channel) not in self._met:
                    found.setdefault(axes, set()).add(channel)
                    self._met.add((axes, channel))
        for axes, channels in sorted(found.items()):
            self.comm.meet(axes, channels, torch.zeros(1, device=self.device))

    def _send(self, site: int, tensor: torch.Tensor, rank: int, tag: int) -> Handle:
        self._count(site, tensor)
        assert self.comm is not None
        return self.comm.send(self._sites[site], rank, tensor, tag, self._ways[site])

    def _receive(self, site: int, tensor: torch.Tensor, rank: int, tag: int) -> Handle:
        self._count(site, tensor)
        assert self.comm is not None
        return self.comm.receive(self._sites[site], rank, tensor, tag, self._ways[site])

    def coalesced(
        self,
        site: int,
        kind: str,
        sources: Sequence[torch.Tensor],
        outs: Sequence[torch.Tensor],
        dims: Sequence[int],
        scratch: torch.Tensor | None,
    ) -> Handle:
        """Several gathers or scatters, or reductions by sum or maximum, over a site's axes."""
        moved = outs if kind == "all_gather" else sources
        self._count_bytes(site, sum(each.numel() * each.element_size() for each in moved))
        assert self.comm is not None
        return self._begun(
            self.comm.coalesced(self._sites[site], kind, sources, outs, dims, scratch)
        )

    def all_to_all(
        self,
        site: int,
        source: torch.Tensor,
        out: torch.Tensor,
        gathered: int,
        scattered: int,
        scratch: torch.Tensor,
    ) -> Handle:
        """Gather a dim over a site's axes and scatter another."""
        self._count(site, source)
        assert self.comm is not None
        return self._begun(
            self.comm.all_to_all(self._sites[site], source, out, gathered, scattered, scratch)
        )

    def exchange_rows(
        self,
        site: int,
        given: torch.Tensor,
        index: torch.Tensor,
        experts: int,
        back: bool,
        out: torch.Tensor,
        scratch: torch.Tensor,
    ) -> None:
        """Rows over a site's axes to their experts, or back; counted are those that were sent."""
        assert self.comm is not None
        axes = self._sites[site]
        sent = self.comm.exchange_rows(axes, given, index, experts, back, out, scratch)
        moved = sent * given.shape[2] * given.element_size()
        self._count_bytes(site, moved)
        self.ragged[site] = self.ragged.get(site, 0) + moved

    def ring_attend(self, site: int, *given: Any, **options: Any) -> None:
        """Attention whose keys and values go round a site's axes; see kernels/ring_attention.py."""
        self._round(site, ring_attention.ring_attend, given, options)

    def ring_attend_grad(self, site: int, *given: Any, **options: Any) -> None:
        """The gradient of ring_attend."""
        self._round(site, ring_attention.ring_attend_grad, given, options)

    def _round(
        self, site: int, kernel: Callable[..., None], given: Sequence[Any], options: dict[str, Any]
    ) -> None:
        assert self.comm is not None
        ring = self.comm.ring(self._sites[site])
        kernel(ring, *given, **options)
        self._count_bytes(site, ring.sent)

    def _count(self, site: int, tensor: torch.Tensor) -> None:
        self._count_bytes(site, tensor.numel() * tensor.element_size())

    def _count_bytes(self, site: int, moved: int) -> None:
        calls, _ = self.counted.get(site, (0, 0))
        self.counted[site] = (calls + 1, moved)
