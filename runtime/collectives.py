"""The transfers that generated code begins, whatever carries them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from fllmc.runtime.flight import Handle
from fllmc.runtime.ring import Ring


class Collectives(Protocol):
    """What the executor needs of a communicator; see runtime/communicator.py."""

    def all_reduce(
        self,
        axes: tuple[str, ...],
        tensor: torch.Tensor,
        combine: str,
        among: tuple[int, ...] = (),
    ) -> Handle:
        """Begin to combine over the axes' group, or the ranks at some positions of it, in place."""
        ...

    def position(self, axes: tuple[str, ...]) -> int:
        """This rank's position on a pipeline axis."""
        ...

    def meet(
        self, axes: tuple[str, ...], channels: Iterable[tuple[int, int, str]], like: torch.Tensor
    ) -> None:
        """Open this rank's channels, each (sender, receiver, pass), with a tensor like this."""
        ...

    def send(
        self, axes: tuple[str, ...], to: int, tensor: torch.Tensor, tag: int, way: str
    ) -> Handle:
        """Begin to send a value of a pass to the rank at a position of a pipeline axis."""
        ...

    def receive(
        self, axes: tuple[str, ...], giver: int, tensor: torch.Tensor, tag: int, way: str
    ) -> Handle:
        """Begin to receive a value of a pass from the rank at a position of a pipeline axis."""
        ...

    def all_gather(
        self,
        axes: tuple[str, ...],
        source: torch.Tensor,
        out: torch.Tensor,
        dim: int,
        scratch: torch.Tensor | None,
        zigzag: bool = False,
    ) -> Handle:
        """Begin to put the group's parts together along a dim."""
        ...

    def coalesced(
        self,
        axes: tuple[str, ...],
        kind: str,
        sources: Sequence[torch.Tensor],
        outs: Sequence[torch.Tensor],
        dims: Sequence[int],
        scratch: torch.Tensor | None,
    ) -> Handle:
        """Begin to do several collectives of a kind as one."""
        ...

    def reduce_scatter(
        self,
        axes: tuple[str, ...],
        source: torch.Tensor,
        out: torch.Tensor,
        dim: int,
        scratch: torch.Tensor | None,
        zigzag: bool = False,
    ) -> Handle:
        """Begin to sum over the group and keep this rank's part of a dim."""
        ...

    def all_to_all(
        self,
        axes: tuple[str, ...],
        source: torch.Tensor,
        out: torch.Tensor,
        gathered: int,
        scattered: int,
        scratch: torch.Tensor,
    ) -> Handle:
        """Begin to put the group's parts of one dim together, of a part of another dim."""
        ...

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
        """Rows to the group's ranks by their experts, or back; how many were sent."""
        ...

    def ring(self, axes: tuple[str, ...]) -> Ring:
        """The axes' group as a ring."""
        ...
