"""What can be wrong with a mesh given on the command line."""

from __future__ import annotations

from fllmc.ir.diagnostics import Diagnostic


class MeshText(Diagnostic, frozen=True):
    """A mesh is written as sizes, `8x4`, or as named axes, `data=8,tensor=4`.

    Sizes are read row-major, the last axis innermost: one is `data`, two are `data, tensor`, and as
    many as the spec's own mesh has take its names.
    """

    code = "E0280"
    title = "`{text}` is not a mesh: {reason}"
    help = ("write sizes, `--mesh 8x4`, or named axes, `--mesh data=8,tensor=4`",)

    text: str
    reason: str


class MeshNames(Diagnostic, frozen=True):
    """Three axes and more have no agreed order, so they are named unless the spec declares them."""

    code = "E0281"
    title = "the {count} axes of mesh `{text}` need names"
    help = ("for example `--mesh {example}`",)

    text: str
    count: int
    example: str
