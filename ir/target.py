"""The figures of a device that the cost model reckons with."""

from __future__ import annotations

import msgspec


class Target(msgspec.Struct, frozen=True):
    """A kind of device. Rates are peaks as the vendor states them, dense, and one way for links.

    `memory_gib` is usable memory in GiB; `bf16_tflops` and `f32_tflops` are 10^12 operations a
    second; `memory_gbps`, `link_gbps` (to devices of the same node) and `network_gbps` (to other
    nodes, per device) are 10^9 bytes a second; `node` counts the devices of a node. `host_gbps` is
    the rate of the link to the host's memory, of which a device has `host_gib`; 0 where none is
    stated.
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    f32_tflops: float
    memory_gbps: float
    link_gbps: float
    network_gbps: float
    node: int = 8
    host_gbps: float = 0.0
    host_gib: float = 0.0

    @property
    def memory_bytes(self) -> int:
        """Usable memory in bytes."""
        return int(self.memory_gib * 2**30)

    @property
    def host_bytes(self) -> int:
        """A device's share of the host's memory in bytes."""
        return int(self.host_gib * 2**30)
