"""`mesh`, `schedule` and `adapter` sections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast, get_args

from fllmc.frontend import ast
from fllmc.frontend.errors import UnknownDim
from fllmc.frontend.section_errors import OutOfRange, ShardTwice, UnknownAxis
from fllmc.frontend.sections.records import Record
from fllmc.frontend.sections.selectors import Paths, selector_text
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.settings import (
    Adapter,
    Compress,
    Context,
    ExpertRows,
    Lora,
    Offload,
    Pipeline,
    Quantize,
    Recompute,
    Rows,
    Schedule,
    Shard,
    Switch,
    Zero,
)
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


PIPELINES: Final = (
    "gpipe", "1f1b", "interleaved", "breadth_first", "zb_h1", "zb_v", "auto",
)  # fmt: skip
CHUNKED: Final = ("interleaved", "breadth_first", "zb_v")
"""Pipeline schedules that give each rank several stages."""

SIZES = {"budget": "budget_gib", "host": "host_gib"}
"""Fields that are a size with a unit, and the settings in GiB that they give."""


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
        items = self.section.items
        record = self.record
        self.twice()
        return Schedule(
            name=self.section.name.text,
            shards=tuple(self.shard(item) for item in items if isinstance(item, ast.Shard)),
            recompute=tuple(
                self.recompute(item) for item in items if isinstance(item, ast.Recompute)
            ),
            microbatches=record.count("microbatches", 1, low=1),
            zero=tuple(self.zero(item) for item in items if isinstance(item, ast.Zero)),
            offload=tuple(
                Offload(self.kept(item.selector), item.span)
                for item in items
                if isinstance(item, ast.Offload)
            ),
            compress=tuple(
                Compress(self.kept(item.selector), item.span)
                for item in items
                if isinstance(item, ast.Compress)
            ),
            pipeline=self.pipeline(),
            context=cast(Context, record.word("context", get_args(Context), "gather")),
            expert_rows=cast(
                ExpertRows, record.word("expert_rows", get_args(ExpertRows), "routed")
            ),
            budget_gib=record.gib("budget") or 0.0,
            host_gib=record.gib("host"),
            loss_chunks=record.count("loss_chunks", 1, low=1),
            backward_chunks=record.count("backward_chunks", 1, low=1),
            overlap=cast(Switch, record.word("overlap", get_args(Switch), "on")),
            places=tuple(
                (SIZES.get(name, name), field.value.span) for name, field in record.fields.items()
            ),
        )

    def pipeline(self) -> Pipeline | None:
        """The order in which pipeline stages work, if the schedule says."""
        found = self.record.call("pipeline", PIPELINES) if self.record.has("pipeline") else None
        if found is None:
            return None
        (name,) = (kind for kind in PIPELINES if found.what == f"`{kind}`")
        chunks = found.count("chunks", 2 if name in CHUNKED else 1, low=1)
        memory, exact = found.number("memory", 0.0), found.flag("exact")
        pipeline = Pipeline(name, chunks, memory, found.place, exact)
        self.record.take(found)
        return pipeline

    def zero(self, item: ast.Zero) -> Zero:
        """One `zero` directive."""
        self.axes(item.axes)
        if item.selector and self.paths:
            self.found.extend(self.paths.parameters(item.selector))
        if item.stage.value not in (1, 2, 3):
            where = f"the stage of `zero` in schedule `{self.section.name.text}`"
            self.found.append(OutOfRange(item.stage.span, where, "1, 2 or 3", item.stage.text))
            return Zero(1, (), span=item.span)
        selector = selector_text(item.selector) if item.selector else "*"
        return Zero(
            int(item.stage.value), tuple(axis.text for axis in item.axes), selector, item.span
        )

    def kept(self, selector: ast.Selector) -> str:
        """A selector of what is kept for the backward pass."""
        if self.paths:
            self.found.extend(self.paths.operations(selector))
        return selector_text(selector)

    def axes(self, names: Iterable[ast.Name]) -> None:
        """Report axes that the schedule's mesh lacks."""
        axes = tuple(axis.name for axis in self.mesh.axes) if self.mesh else ()
        mesh = self.section.mesh.text if self.section.mesh else ""
        for axis in names:
            if self.mesh and axis.text not in axes:
                self.found.append(UnknownAxis(axis.span, axis.text, axes, mesh))

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
        return Shard(*names, selector, item.span, elsewhere=item.elsewhere)

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
                place += " elsewhere" * item.elsewhere
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
    quantize: list[Quantize] = []
    rows: list[Rows] = []
    for item in section.items:
        text = selector_text(item.selector)
        if isinstance(item, ast.Lora):
            update, mistakes = _lora(item, text)
            lora.append(update)
            found.extend(mistakes)
        elif isinstance(item, ast.Quantize):
            stored, mistakes = _quantize(item, text)
            quantize.append(stored)
            found.extend(mistakes)
        elif item.fields is not None:
            stretch, mistakes = _rows(item, item.fields, text)
            rows.append(stretch)
            found.extend(mistakes)
        else:
            (freeze if isinstance(item, ast.Freeze) else tune).append(text)
        if paths:
            arrows = isinstance(item, ast.Lora | ast.Quantize)
            found.extend(paths.parameters(item.selector, arrows=arrows))
    changes = tuple(freeze), tuple(tune), tuple(lora), tuple(rows), tuple(quantize)
    return Adapter(section.name.text, *changes), tuple(found)


def _quantize(item: ast.Quantize, selector: str) -> tuple[Quantize, tuple[Diagnostic, ...]]:
    record = Record("`quantize`", item.selector.span, item.fields)
    bits, block = record.choice("bits", (4, 8), 4), record.count("block", 64, low=4)
    stored = Quantize(selector, bits, block, record.name("along"), item.span)
    return stored, record.done()


def _rows(
    item: ast.Freeze | ast.Tune, fields: tuple[ast.Field, ...], selector: str
) -> tuple[Rows, tuple[Diagnostic, ...]]:
    tune = isinstance(item, ast.Tune)
    record = Record("`tune`" if tune else "`freeze`", item.selector.span, fields)
    first, stop = record.stretch("rows", "(0, 100)")
    return Rows(selector, first, stop, tune, record.place_of("rows")), record.done()


def _lora(item: ast.Lora, selector: str) -> tuple[Lora, tuple[Diagnostic, ...]]:
    record = Record("`lora`", item.selector.span, item.fields)
    rank = record.count("rank", 1, low=1, example="16")
    alpha = record.number("alpha", float(rank))
    update = Lora(selector, rank, alpha, record.number("dropout", 0.0, 0.0, 0.99), item.span)
    return update, record.done()
