"""`target` sections: the devices that ship, and those of the user's own files."""

from __future__ import annotations

from fllmc.frontend import ast
from fllmc.frontend.library import SHIPPED, read_all, shipped
from fllmc.frontend.section_errors import NoTarget, OutOfRange, UnknownSection
from fllmc.frontend.sections.records import Record
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.span import NOWHERE
from fllmc.ir.target import Target

FIGURES = (
    "memory_gib",
    "bf16_tflops",
    "f32_tflops",
    "memory_gbps",
    "link_gbps",
    "network_gbps",
)


def load_target(name: str) -> Target:
    """The target called `name` among those that ship, or the one in the file at that path.

    Raises DiagnosticError.
    """
    if name in shipped("targets"):
        file = f"{SHIPPED}targets/{name}.fllm"
    elif name.endswith(".fllm"):
        file = name
    else:
        raise DiagnosticError(UnknownSection(NOWHERE, name, shipped("targets"), "target"))
    library = read_all(file)
    if library.found:
        raise DiagnosticError(*library.found)
    sections = library.modules[file].own("target")
    if len(sections) != 1 or not isinstance(sections[0], ast.Target):
        raise DiagnosticError(NoTarget(NOWHERE, file, len(sections)))
    target, found = read_target(sections[0])
    if found:
        raise DiagnosticError(*found)
    return target


def smallest_target(needed: int) -> Target:
    """The device that ships with least memory that is at least `needed` bytes, else with most."""
    targets = [load_target(name) for name in shipped("targets")]
    by_memory = sorted(targets, key=lambda target: (target.memory_bytes, target.name))
    return next((t for t in by_memory if t.memory_bytes >= needed), by_memory[-1])


def read_target(section: ast.Target) -> tuple[Target, tuple[Diagnostic, ...]]:
    """The section's figures, and what is wrong with it."""
    name = section.name
    record = Record(f"target `{name.text}`", name.span, section.fields)
    figures: dict[str, float] = {}
    for key in FIGURES:
        figures[key] = record.number(key, example="100")
        value = record.fields.get(key)
        if value and isinstance(value.value, ast.Number) and value.value.value == 0:
            where = f"`{key}` of {record.what}"
            record.found.append(OutOfRange(value.value.span, where, "above zero", "0"))
    node = record.count("node", 8, low=1)
    link, memory = record.number("host_gbps", 0.0), record.number("host_gib", 0.0)
    return Target(name.text, **figures, node=node, host_gbps=link, host_gib=memory), record.done()
