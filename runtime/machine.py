"""Where a run is: the launcher's variables, the machine's cores, memory and GPUs. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.plan import ALIGNMENT, Plan
from fllmc.ir.quantities import bytes_text
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import Mesh
from fllmc.runtime import run_errors
from fllmc.runtime.options import Options

PER_CORE = 8
MOST_PROCESSES = 64
PACKAGES = ("torch", "safetensors", "tokenizers")
SMALL_ARENA = 16 << 20
"""Bytes. Ops on less than this are done before a second thread has woken up."""


class Place(msgspec.Struct, frozen=True):
    """This process among those that a launcher started."""

    rank: int
    world: int
    local: int


def joined(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun, or a launcher like it, gave this process; None without one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if any(name not in environment for name in names):
        return None
    numbers: list[int] = []
    for name in names:
        value = environment[name]
        if not value.isascii() or not value.isdigit():
            wanted = "a whole number"
            raise DiagnosticError(run_errors.BadEnvironment(NOWHERE, name, value, wanted))
        numbers.append(int(value))
    return Place(*numbers)


def require_world(mesh: Mesh, place: Place) -> None:
    """Refuse a launcher's processes when they are not as many as the mesh's devices."""
    if place.world != mesh.size:
        fitting = fitted(mesh, place.world, exact=True)
        raise DiagnosticError(
            run_errors.WorldSize(NOWHERE, str(mesh), mesh.size, place.world, fitting)
        )


def require_packages() -> None:
    """Refuse to run where what `fllmc[run]` installs is missing."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise DiagnosticError(run_errors.TorchMissing(NOWHERE, package))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def most_local_processes() -> int:
    """How many processes a CPU host takes; more would only wait for one another."""
    return min(MOST_PROCESSES, PER_CORE * cores())


def gpus() -> int:
    """GPUs that torch sees. Where the system has no such device torch is not asked."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count()


def choose_device(mesh: Mesh, processes: int, options: Options) -> str:
    """`cuda` where each of this machine's processes can have a GPU of its own, else `cpu`."""
    if options.device == "cpu":
        return "cpu"
    found = gpus()
    if found >= processes:
        return "cuda"
    if options.device == "cuda":
        raise DiagnosticError(run_errors.TooFewGpus(NOWHERE, str(mesh), processes, found))
    return "cpu"


def require_local(plan: Plan, device: str) -> None:
    """Refuse a mesh that is too large for this machine, or an arena that its memory can't hold."""
    mesh = plan.program.mesh
    if device == "cuda":
        return
    most = most_local_processes()
    if mesh.size > most:
        fitting = fitted(mesh, most, exact=False)
        found = gpus()
        raise DiagnosticError(
            run_errors.MeshTooLarge(NOWHERE, str(mesh), mesh.size, most, cores(), found, fitting)
        )
    each = max(stage.arena_bytes for stage in plan.by_stage) + ALIGNMENT
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if each * mesh.size > available:
        needed, has = bytes_text(each * mesh.size), bytes_text(available)
        raise DiagnosticError(
            run_errors.TooLittleMemory(NOWHERE, needed, has, bytes_text(each), mesh.size)
        )


def fitted(mesh: Mesh, processes: int, exact: bool) -> str:
    """The mesh with its outer axes made smaller to have at most, or exactly, so many devices.

    Inner axes are kept as long as possible: they are those that a model's dims are cut for. A size
    divides the one that was asked for, unless the number must be met exactly. Empty if none fits.
    """
    sizes: list[tuple[str, int]] = []
    left = processes
    for axis in reversed(mesh.axes):
        last = axis is mesh.axes[0]
        if exact and last:
            size = left
        else:
            size = max(n for n in range(1, axis.size + 1) if axis.size % n == 0 and n <= left)
            size = size if not exact or left % size == 0 else 1
        sizes.append((axis.name, size))
        left //= size
    return ",".join(f"{name}={size}" for name, size in reversed(sizes))


def share_cores() -> None:
    """Let idle threads spin shortly, then sleep. Must come before torch is imported.

    Threads that spin without end keep cores from other processes' work: on a busy machine a step
    took ten times as long. Threads that sleep at once cost 1.8 times the step on a quiet one.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")


def thread_count(plan: Plan, processes: int, options: Options) -> int:
    """Threads for each process: as asked, one for a small plan, else a share of the cores."""
    if options.threads > 0:
        return options.threads
    return 1 if plan.arena_bytes < SMALL_ARENA else max(1, cores() // processes)
