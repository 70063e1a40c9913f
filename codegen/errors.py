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


class ArtifactStranger(Diagnostic, frozen=True):
    """A file that is no part of the artifact lies in its folder. An artifact holds what the
    compiler wrote and nothing else, so that what is run is what was compiled.
    """

    code = "E0723"
    title = "`{path}` is no part of the artifact"
    help = ("move it away, or compile the spec again",)

    path: str


class ArtifactChanged(Diagnostic, frozen=True):
    """A file differs from what the plan gives. Artifacts are not edited: nothing runs that this
    version would not have generated itself.
    """

    code = "E0722"
    title = "`{path}` was changed after it was compiled"
    help = ("edit the spec and compile it again",)

    path: str
