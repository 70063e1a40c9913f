"""What a run can find wrong with its machine, its folder and its course, in words."""

from __future__ import annotations

from fllmc.ir.diagnostics import Diagnostic


class WorldSize(Diagnostic, frozen=True):
    """A plan is for exactly one mesh, and each device of the mesh is one process.

    The launcher (torchrun or another that sets RANK, WORLD_SIZE and LOCAL_RANK) started another
    number. Start as many processes as the mesh has devices, or compile for a mesh that fits.
    """

    code = "E0801"
    title = "mesh {mesh} needs {needed} processes, found {found}"
    label = "WORLD_SIZE={found} is set by the launcher"

    mesh: str
    needed: int
    found: int
    fitting: str

    def helps(self) -> tuple[str, ...]:
        """The number to start, and the mesh to compile for."""
        start = f"start {self.needed} processes"
        return (f"{start}, or compile with `--mesh {self.fitting}`",) if self.fitting else (start,)


class MeshTooLarge(Diagnostic, frozen=True):
    """Without a launcher every process of the mesh runs on this machine.

    On GPUs each process has its own. On a CPU processes share the cores, at most eight to a core
    and 64 in all; beyond that they would only wait for one another.
    """

    code = "E0802"
    title = "mesh {mesh} needs {needed} processes, but this machine takes at most {most}"
    label = "{cores} CPU core(s), {gpus} GPU(s)"

    mesh: str
    needed: int
    most: int
    cores: int
    gpus: int
    fitting: str

    def helps(self) -> tuple[str, ...]:
        """A mesh that runs here, and how to run this one."""
        there = "run it on more machines under torchrun, on each with the same artifact"
        return (f"`--mesh {self.fitting}` runs on this machine", there)


class TooLittleMemory(Diagnostic, frozen=True):
    """The plan's arena is known to the byte before anything is allocated, and it does not fit."""

    code = "E0803"
    title = "the plan needs {needed} on this machine, which has {available}"
    label = "{each} of arena for each of {processes} process(es)"
    help = ("use a smaller `batch` or `seq`, recompute more, or shard over a larger mesh",)

    needed: str
    available: str
    each: str
    processes: int


class TorchMissing(Diagnostic, frozen=True):
    """Compiling needs no torch; running does, and the extra `run` installs what it needs."""

    code = "E0804"
    title = "running needs the package `{package}`, which is not installed"
    help = ("pip install 'fllmc[run]'",)

    package: str


class RunFolderInUse(Diagnostic, frozen=True):
    """A new run never writes over the checkpoints of another."""

    code = "E0805"
    title = "`{folder}` already holds a run"
    help = ("continue it with `fllmc resume {folder}`, or choose another folder",)

    folder: str


class RunFolderUnusable(Diagnostic, frozen=True):
    """The folder of a run can't be created, read or written."""

    code = "E0806"
    title = "cannot use the run folder `{folder}`: {reason}"

    folder: str
    reason: str


class NotFinite(Diagnostic, frozen=True):
    """The loss or the norm of the gradients is not a number or infinite.

    The step's update is not saved: the newest checkpoint is from before it.
    """

    code = "E0807"
    title = "step {step}: {what} is {value}"
    note = ("{kept}",)
    help = ("lower the peak of `rate`, lengthen its `warmup`, or set `clip: 1.0`",)

    step: int
    what: str
    value: str
    kept: str


class WorkerFailed(Diagnostic, frozen=True):
    """A process of the run failed with a fault that is not the input's; the others were stopped."""

    code = "E0808"
    title = "rank {rank} failed: {reason}"
    note = ("the traceback is in {file}",)

    rank: int
    reason: str
    file: str


class WorkerKilled(Diagnostic, frozen=True):
    """A process of the run ended without a word, as by a signal; the others were stopped."""

    code = "E0809"
    title = "rank {rank} ended with {how}"
    help = (
        "SIGKILL is often the system's answer to a lack of memory; "
        "the run can be resumed from its last checkpoint",
    )

    rank: int
    how: str


class BadEnvironment(Diagnostic, frozen=True):
    """A launcher's variable is set to what no launcher sets it to."""

    code = "E0810"
    title = "the environment variable {name} is `{value}`, not {wanted}"
    label = "set by the launcher, or left over from one"

    name: str
    value: str
    wanted: str


class TooFewGpus(Diagnostic, frozen=True):
    """A run on GPUs needs one for each of its processes on this machine."""

    code = "E0811"
    title = "mesh {mesh} needs {needed} GPU(s), found {found}"
    help = ("run on the CPU with `--device cpu`",)

    mesh: str
    needed: int
    found: int


class ResumeMismatch(Diagnostic, frozen=True):
    """A resumed run must see the data, the order and the seed that it would have seen.

    Resuming on another mesh, with another schedule or for more steps is fine.
    """

    code = "E0714"
    title = "cannot resume from `{checkpoint}`: {fact} was `{found}`, and now is `{expected}`"
    help = ("resume with what the run began with, or start a new run",)

    checkpoint: str
    fact: str
    found: str
    expected: str
