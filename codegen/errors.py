"""What can be wrong with an artifact."""

from __future__ import annotations

from fllmc.ir.diagnostics import Diagnostic


class ArtifactMissing(Diagnostic, frozen=True):
    """The folder is no artifact, or a file of it is gone. `fllmc compile` writes artifacts."""

    code = "E0720"
    title = "`{folder}` has no `{file}`"
    help = ("compile it again: `fllmc compile SPEC -o {folder}`",)

    folder: str
    file: str


class ArtifactUnreadable(Diagnostic, frozen=True):
    """A file of the artifact is not what this version writes."""

    code = "E0721"
    title = "`{path}` {reason}"
    help = ("compile the spec again with this version",)

    path: str
    reason: str


class ArtifactChanged(Diagnostic, frozen=True):
    """A file differs from what the plan gives. Artifacts are not edited: nothing runs that this
    version would not have generated itself.
    """

    code = "E0722"
    title = "`{path}` was changed after it was compiled"
    help = ("edit the spec and compile it again",)

    path: str
