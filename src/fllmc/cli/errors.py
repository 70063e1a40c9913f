"""What the command line finds wrong beside what the stages do, in words."""

from __future__ import annotations

from fllmc.ir.diagnostics import Diagnostic


class DoesNotFit(Diagnostic, frozen=True):
    """The plan is right, and one rank of it needs more memory than the target has.

    The bytes are exact: the arena is laid out when the plan is made. What takes most is named. More
    devices on a `batch` or weight axis, a recompute directive, more microbatches or a smaller batch
    all make it smaller; `fllmc inspect SPEC --memory` with the same mesh shows where the peak is.
    """

    code = "E0401"
    infeasible = True
    title = "one rank of `{name}` needs {needed}, and {target} has {available}"
    note = ("{parts}",)
    help = (
        "see where the peak is: `{inspect}`",
        "divide more with `--mesh`, `recompute` more, or set `microbatches` in the schedule",
    )

    name: str
    needed: str
    target: str
    available: str
    parts: str
    inspect: str


class FitsNothing(Diagnostic, frozen=True):
    """No target was named, and one rank of the plan needs more memory than any device that ships.

    The artifact is written all the same. With `--target` named, this is the error E0401.
    """

    code = "W0401"
    severity = "warning"
    title = "one rank of `{name}` needs {needed}, more than any device that ships has"
    note = ("the largest is {target} with {available}", "{parts}")
    help = (
        "see where the peak is: `{inspect}`",
        "divide more with `--mesh`, `recompute` more, or set `microbatches` in the schedule",
    )

    name: str
    needed: str
    target: str
    available: str
    parts: str
    inspect: str


class NoRun(Diagnostic, frozen=True):
    """The folder of a run holds the artifact that it runs; this folder holds none."""

    code = "E0731"
    title = "`{folder}` is not the folder of a run: it has no `{artifact}`"
    help = ("`fllmc run` says at its start which folder it uses",)

    folder: str
    artifact: str


class SpecChanged(Diagnostic, frozen=True):
    """A run is resumed on another mesh by compiling its spec again, and that must be the same spec.

    The run's artifact holds the texts that it was compiled from. A file that is gone or differs
    would give another model, so nothing is compiled.
    """

    code = "E0730"
    title = "`{file}` is not as it was when the run began"
    help = ("restore it, or resume on the run's own mesh by leaving out `--mesh`",)

    file: str


class NotWritable(Diagnostic, frozen=True):
    """A file or folder that a command was told to write can't be written."""

    code = "E0830"
    title = "cannot write `{path}`: {reason}"

    path: str
    reason: str


class NotReadable(Diagnostic, frozen=True):
    """A file that a command was given can't be read."""

    code = "E0831"
    title = "cannot read `{path}`: {reason}"

    path: str
    reason: str
