"""`mesh`, `schedule` and `adapter` sections."""

from __future__ import annotations

from collections.abc import Iterable

from fllmc.frontend import ast
from fllmc.frontend.errors import UnknownDim
from fllmc.frontend.section_errors import ShardTwice, UnknownAxis
from fllmc.frontend.sections.records import Record
from fllmc.frontend.sections.selectors import Paths, selector_text
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.settings import Adapter, Lora, Recompute, Schedule, Shard
from fllmc.ir.types import Axis, Mesh


def read_mesh(section: ast.Mesh) -> tuple[Mesh, tuple[Diagnostic, ...]]:
    """The mesh, axes in the order written."""
    what = f"mesh `{section.name.text}`"
    record = Record(what, section.name.span, section.fields)
    axes = tuple(Axis(key, record.count(key, 1, low=1)) for key in record.fields)
    return Mesh(axes), record.done()


def read_schedule(
    section: ast.Schedule, dims: Iterable[str], mesh: Mesh | None, paths: Paths | None
) -> tuple[Schedule, tuple[Diagnostic, ...]]:
    """The schedule. Axes are compared with the mesh and selectors with the paths, if given."""
    reader = _ScheduleReader(section, tuple(dims), mesh, paths)
    return reader.run(), (*reader.found, *reader.record.done())


class _ScheduleReader:
    """Reads one schedule."""

    def __init__(
        self,
        section: ast.Schedule,
        dims: tuple[str, ...],
        mesh: Mesh | None,
        paths: Paths | None,
    ) -> None:
        self.section = section
        self.dims = dims
        self.mesh = mesh
        self.paths = paths
        self.found: list[Diagnostic] = []
        fields = [item for item in section.items if isinstance(item, ast.Field)]
        name = section.name
        self.record = Record(f"schedule `{name.text}`", name.span, fields)

    def run(self) -> Schedule:
        """The schedule's settings."""
        shards: list[Shard] = []
        recompute: list[Recompute] = []
        for item in self.section.items:
            if isinstance(item, ast.Shard):
                shards.append(self.shard(item))
            elif isinstance(item, ast.Recompute):
                recompute.append(self.recompute(item))
        microbatches = self.record.count("microbatches", 1, low=1)
        self.twice()
        return Schedule(self.section.name.text, tuple(shards), tuple(recompute), microbatches)

    def shard(self, item: ast.Shard) -> Shard:
        """One `shard` directive."""
        for dim in item.dims:
            if dim.text not in self.dims:
                self.found.append(UnknownDim(dim.span, dim.text, self.dims))
        axes = tuple(axis.name for axis in self.mesh.axes) if self.mesh else ()
        mesh = self.section.mesh.text if self.section.mesh else ""
        for axis in item.axes:
            if self.mesh and axis.text not in axes:
                self.found.append(UnknownAxis(axis.span, axis.text, axes, mesh))
        selector = selector_text(item.selector) if item.selector else ""
        if item.selector and self.paths:
            self.found.extend(self.paths.parameters(item.selector))
        names = tuple(dim.text for dim in item.dims), tuple(axis.text for axis in item.axes)
        return Shard(*names, selector, item.span)

    def recompute(self, item: ast.Recompute) -> Recompute:
        """One `recompute` directive."""
        keep = item.keep or ()
        if self.paths:
            self.found.extend(self.paths.operations(item.selector))
            for each in keep:
                self.found.extend(self.paths.operations(each, under=True))
        return Recompute(selector_text(item.selector), tuple(map(selector_text, keep)), item.span)

    def twice(self) -> None:
        """Report dims that two directives shard in the same places."""
        seen: dict[tuple[str, str], ast.Name] = {}
        for item in self.section.items:
            if not isinstance(item, ast.Shard):
                continue
            for dim in item.dims:
                place = selector_text(item.selector) if item.selector else ""
                first = seen.setdefault((dim.text, place), dim)
                if first is not dim:
                    self.found.append(ShardTwice(dim.span, dim.text, first.span))


def read_adapter(
    section: ast.Adapter, paths: Paths | None
) -> tuple[Adapter, tuple[Diagnostic, ...]]:
    """The adapter. Selectors are compared with the model's paths, if given."""
    found: list[Diagnostic] = []
    freeze: list[str] = []
    tune: list[str] = []
    lora: list[Lora] = []
    for item in section.items:
        text = selector_text(item.selector)
        if isinstance(item, ast.Lora):
            update, mistakes = _lora(item, text)
            lora.append(update)
            found.extend(mistakes)
        else:
            (freeze if isinstance(item, ast.Freeze) else tune).append(text)
        if paths:
            found.extend(paths.parameters(item.selector, arrows=isinstance(item, ast.Lora)))
    return Adapter(section.name.text, tuple(freeze), tuple(tune), tuple(lora)), tuple(found)


def _lora(item: ast.Lora, selector: str) -> tuple[Lora, tuple[Diagnostic, ...]]:
    record = Record("`lora`", item.selector.span, item.fields)
    rank = record.count("rank", 1, low=1, example="16")
    alpha = record.number("alpha", float(rank))
    update = Lora(selector, rank, alpha, record.number("dropout", 0.0, 0.0, 0.99), item.span)
    return update, record.done()
