"""Meshes as text: `8x4` or `data=8,tensor=4`."""

from __future__ import annotations

import re
from typing import Final

from fllmc.frontend.mesh_errors import MeshNames, MeshText
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import Axis, Mesh

POSITIONAL: Final = {1: ("data",), 2: ("data", "tensor")}
ALIASES: Final = {
    "dp": "data",
    "dp_shard": "fsdp",
    "zero": "fsdp",
    "tp": "tensor",
    "mp": "tensor",
    "model": "tensor",
}
ONE_DEVICE: Final = Mesh()
LARGEST: Final = 1 << 20
"""Devices in a mesh; more is a slip of the finger."""


def parse_mesh(text: str, declared: Mesh = ONE_DEVICE) -> tuple[Mesh, str]:
    """The mesh and how it was read. DiagnosticError when the text is none."""
    clean = text.strip().replace("×", "x").replace("X", "x")
    if re.fullmatch(r"[0-9]+(x[0-9]+)*", clean):
        sizes = [int(part) for part in clean.split("x")]
        names = positional_names(clean, sizes, declared)
        mesh = checked(text, list(zip(names, sizes, strict=True)))
        return mesh, f"{text} read as {mesh}: {mesh.size} devices, {names[-1]} innermost"
    axes: list[tuple[str, int]] = []
    for part in clean.split(","):
        found = re.fullmatch(r"\s*([a-z_][a-z_0-9]*)\s*[=:]\s*([0-9]+)\s*", part)
        if found is None:
            raise DiagnosticError(MeshText(NOWHERE, text, f"`{part.strip()}` is no axis"))
        axes.append((ALIASES.get(found[1], found[1]), int(found[2])))
    mesh = checked(text, axes)
    return mesh, f"{mesh}: {mesh.size} devices, {axes[-1][0]} innermost"


def positional_names(text: str, sizes: list[int], declared: Mesh) -> tuple[str, ...]:
    """Names for sizes without names: the spec's own, or the customary ones."""
    if len(declared.axes) == len(sizes):
        return tuple(axis.name for axis in declared.axes)
    if len(sizes) in POSITIONAL:
        return POSITIONAL[len(sizes)]
    names = ("replica", "data", "fsdp", "tensor")[-len(sizes) :]
    shown = ",".join(f"{name}={size}" for name, size in zip(names, sizes, strict=False))
    raise DiagnosticError(MeshNames(NOWHERE, text, len(sizes), shown))


def checked(text: str, axes: list[tuple[str, int]]) -> Mesh:
    """The mesh, after checking names and sizes."""
    names = [name for name, _ in axes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DiagnosticError(MeshText(NOWHERE, text, f"axis `{twice[0]}` stands twice"))
    if any(size < 1 for _, size in axes):
        raise DiagnosticError(MeshText(NOWHERE, text, "an axis has at least one device"))
    mesh = Mesh(tuple(Axis(name, size) for name, size in axes))
    if mesh.size > LARGEST:
        raise DiagnosticError(MeshText(NOWHERE, text, f"it has {mesh.size} devices"))
    return mesh
