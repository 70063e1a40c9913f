"""A spec as one file in which every default is written out.

The text is the user's own, file by file, with what was left out put in where it belongs; what has
no value that could be written stands as a comment. It compiles to what the spec compiles to.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.checking import Checked
from fllmc.frontend.format import format_source
from fllmc.frontend.library import Bound, Group, Module
from fllmc.frontend.lowering.model import LOOKUP_STD
from fllmc.frontend.lowering.spec import Lowering
from fllmc.frontend.resolved_fields import call, data_fields, schedule_fields, train_fields
from fllmc.frontend.sections.overrides import read_overrides
from fllmc.frontend.sections.stages import OF_TRAIN
from fllmc.frontend.semantics.forms import FORMS
from fllmc.frontend.semantics.typed import Block, Key, Param, Typed
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.settings import Data, Spec
from fllmc.ir.span import Span


class Edit(Struct, frozen=True, order=True):
    """Text in place of what stands from `start` to `end`."""

    start: int
    end: int
    text: str


def resolved(checked: Checked, choices: Mapping[str, str]) -> str:
    """The spec of one run, everything written out. `choices` are those of `--set NAME=...`.

    DiagnosticError if there is no such run or something is wrong with it.
    """
    overrides = read_overrides(dict(choices), checked.module.dims)
    lowering = Lowering(checked, overrides)
    made: list[tuple[Lowering, Spec]] = []
    try:
        parts, found = lowering.parts()
        lowering.found += found
        for part in parts or (None,):
            lowering = Lowering(checked, overrides, part)
            made.append((lowering, lowering.run()))
            lowering.stop()
    except DiagnosticError as error:
        raise DiagnosticError(*lowering.found, *error.diagnostics) from error
    return format_source(_Writer(checked, made).text())


class _Writer:
    """Writes the file of one run."""

    def __init__(self, checked: Checked, made: Sequence[tuple[Lowering, Spec]]) -> None:
        self.checked, self.made = checked, made
        self.lowering, self.spec = lowering, _ = made[0]
        self.modules = checked.library.modules
        self.main = checked.module
        self.train = lowering.chosen_train()
        self.model, self.adapter = lowering.subject(self.train)
        self.used = list(self.reached(self.model, {}))
        self.names = self.unique()

    def reached(self, key: Key, seen: dict[Key, None]) -> Iterator[Key]:
        """The block and all under it, inner ones first; patterns of layers are no blocks."""
        if key in seen:
            return
        seen[key] = None
        for nested in self.checked.blocks[key].nested.values():
            yield from self.reached(nested.block, seen)
        if not key.name.startswith("["):
            yield key

    def unique(self) -> dict[Key, str]:
        """A name for each block; the second of one name gets a number."""
        names: dict[Key, str] = {}
        for key in self.used:
            name, count = key.name, 1
            while name in names.values():
                count += 1
                name = f"{key.name}_{count}"
            names[key] = name
        return names

    def text(self) -> str:
        """The whole file, not laid out."""
        parts = ["fllm 1", self.dims()]
        files = dict.fromkeys((self.main.file, *(key.file for key in self.used)))
        for file in files:
            for section in self.modules[file].tree.sections:
                if isinstance(section, ast.Require):
                    parts.append(self.written(file, section, []))
        for key in self.used:
            bound = self.modules[key.file].find("block", key.name)
            assert bound and isinstance(bound.section, ast.Block)
            parts.append(self.written(key.file, bound.section, self.block(key, bound.section)))
        parts += self.rules()
        for file in files if self.spec.foreign is not None else ():
            for section in self.modules[file].tree.sections:
                name = section.subject if isinstance(section, ast.Checkpoint) else None
                bound = name and self.modules[file].find("block", name.text)
                if name and bound and _key(bound) in self.names:
                    edits = [_instead(name.span, self.names[_key(bound)])]
                    parts.append(self.written(file, section, edits))
        if self.adapter is not None:
            assert isinstance(self.adapter.section, ast.Adapter)
            edits = list(self.adapted(self.adapter.section))
            parts.append(self.written(self.adapter.file, self.adapter.section, edits))
        parts += self.data()
        parts.append(self.written(self.main.file, self.train, list(self.trained())))
        parts += self.placed()
        return "\n\n".join(parts) + "\n"

    def written(self, file: str, section: ast.Node, edits: list[Edit]) -> str:
        """A section's text with the comment in front of it, changed."""
        source = self.checked.library.sources[file]
        start, end = section.span.start, section.span.end
        pieces: list[str] = []
        at = _comment(source, start)
        for edit in sorted(edits):
            pieces += [source[at : edit.start], edit.text]
            at = edit.end
        return "".join([*pieces, source[at:end]])

    def dims(self) -> str:
        """Sizes of all dims but those that the data gives."""
        sections: list[ast.Data | ast.Stage] = [*self.data_sections(), *self.train.stages]
        stated = {field.key.text for section in sections for field in section.fields}
        lines = [
            f"  {name}" if name in stated and name in ("batch", "seq") else f"  {name} = {size}"
            for name, size in ((name, self.size(name)) for name in self.main.dims)
            if size is not None or name in stated
        ]
        return "dims {\n" + "\n".join(lines) + "\n}"

    def size(self, dim: str) -> int | None:
        """The size of a dim, None if it has none."""
        return self.lowering.sizes.table.size(dim)

    # Blocks.

    def block(self, key: Key, section: ast.Block) -> list[Edit]:
        """Names as they are unique, how parameters begin, and arguments that were left out."""
        block, module = self.checked.blocks[key], self.modules[key.file]
        edits = [_instead(section.name.span, self.names[key])]
        for item in section.items:
            if isinstance(item, ast.Sub | ast.Stack):
                layers = [layer.block for layer in getattr(item, "pattern", ())]
                for name in layers or [item.block]:
                    edits.append(_instead(name.span, self.called(module, name)))
            if isinstance(item, ast.Param) and item.init is None:
                param = block.params[item.name.text]
                edits.append(_behind(item.span, f" = {begun(param)}"))
        own = {*block.params, *block.nested}
        for item in section.items:
            for each in _calls(item):
                edits += self.completed(each, own, block)
        return edits

    def called(self, module: Module, name: ast.Name) -> str:
        bound = module.find("block", name.text)
        assert bound is not None
        return self.names[_key(bound)]

    def completed(self, call: ast.Call, own: set[str], block: Block) -> Iterator[Edit]:
        """The arguments of a built-in function that were left out."""
        name = call.function.name if isinstance(call.function, ast.Ref) else ""
        if name not in FORMS or name in own or (name == "max" and call.dims):
            return
        given = {argument.key.text for argument in call.arguments if argument.key}
        missing = [
            f"{key}: {option.default}"
            for key, option in FORMS[name].options.items()
            if key not in given and option.default
        ]
        if name == "attend" and "scale" not in given:
            missing.append(f"scale: {self.scale(call.span, block)!r}")
        if missing:
            yield self.more(call, missing)

    def more(self, call: ast.Call, missing: list[str]) -> Edit:
        """Arguments put in front of the closing parenthesis."""
        source = self.checked.library.sources[call.span.file]
        inside = source[: call.span.end - 1].rstrip()
        comma = "" if inside.endswith((",", "(")) else ", "
        return Edit(call.span.end - 1, call.span.end - 1, comma + ", ".join(missing))

    def scale(self, span: Span, block: Block) -> float:
        """What an attention multiplies scores by where nothing is said."""
        values = [step.value for step in block.steps] + [block.returned]
        found = next(each.op for value in values for each in _typed(value) if each.span == span)
        size = self.size(getattr(found, "dim", ""))
        return 1 / math.sqrt(size or 1)

    # Other sections.

    def rules(self) -> list[str]:
        """The loss, the optimizers and the rates, where they are the file's own."""
        parts: list[str] = []
        groups: dict[str, Group] = {"loss": "block", "optimizer": "optimizer", "rate": "rate"}
        for key, group in groups.items():
            for name in dict.fromkeys(_callees(self.train, key)):
                bound = self.main.find(group, name)
                if bound and (key != "loss" or getattr(bound.section, "kind", "") == "loss"):
                    parts.append(self.written(bound.file, bound.section, []))
        return parts

    def adapted(self, section: ast.Adapter) -> Iterator[Edit]:
        """Fields of low-rank updates and of codes; the model by its name here."""
        yield _instead(section.model.span, self.names[self.model])
        adapter = self.spec.adapter
        assert adapter is not None
        updates, codes = iter(adapter.lora), iter(adapter.quantize)
        for item in section.items:
            if isinstance(item, ast.Lora):
                each = next(updates)
                fields = {
                    "rank": str(each.rank),
                    "alpha": f"{each.alpha!r}",
                    "dropout": f"{each.dropout!r}",
                }
                yield from self.fields(item.fields, fields, item.span)
            elif isinstance(item, ast.Quantize):
                each = next(codes)
                fields = {"bits": str(each.bits), "block": str(each.block)}
                if each.along:
                    fields["along"] = each.along
                if item.fields:
                    yield from self.fields(item.fields, fields, item.span)
                else:
                    lines = "\n".join(f"{key}: {text}" for key, text in fields.items())
                    yield _behind(item.span, " {\n" + lines + "\n}")

    def data_sections(self) -> list[ast.Data]:
        """The data section of the run, then the parts of a mixture."""
        names = dict.fromkeys(data.name for data in self.datas())
        sections = [self.bound_data(name).section for name in names]
        return [section for section in sections if isinstance(section, ast.Data)]

    def datas(self) -> list[Data]:
        """The data of all parts of the run, each once."""
        return list({spec.data.name: spec.data for _, spec in self.made}.values())

    def bound_data(self, name: str) -> Bound:
        sections = self.lowering.data_sections()
        section, file = sections[name]
        return Bound(file, section)

    def data(self) -> list[str]:
        """The data sections with all fields, parts of a mixture first."""
        wholes = self.datas()
        parts = {part.name: part for whole in wholes for part in whole.parts}
        alone = {whole.name for whole in wholes}
        mixed = [self.datum(part, part=True) for name, part in parts.items() if name not in alone]
        return [*mixed, *(self.datum(whole, part=False) for whole in wholes)]

    def datum(self, data: Data, part: bool) -> str:
        bound = self.bound_data(data.name)
        section = bound.section
        assert isinstance(section, ast.Data)
        edits = list(self.fields(section.fields, data_fields(data, part), section.span))
        source = next(f for f in section.fields if f.key.text == "source")
        beside = posixpath.dirname(self.main.file)
        if data.source and data.folder and data.folder != beside:
            path = posixpath.relpath(posixpath.join(data.folder, data.source), beside or ".")
            edits = [e for e in edits if e.start != source.value.span.start]
            edits.append(_instead(source.value.span, f'"{path}"'))
        return self.written(bound.file, section, edits)

    def trained(self) -> Iterator[Edit]:
        """The fields of the `train` section."""
        fields = train_fields(self.spec, self.lowering.choices)
        if self.adapter is None:
            yield _instead(self.train.subject.span, self.names[self.model])
        if self.train.stages:
            fields = {key: text for key, text in fields.items() if key not in OF_TRAIN}
        whole = [each for each in self.train.fields if not isinstance(each, ast.FieldIn)]
        yield from self.fields(whole, fields, self.train.span)
        yield from self.selected()
        if self.train.stages:
            yield from self.rates()

    def selected(self) -> Iterator[Edit]:
        """Optimizers and rates of some parameters, with all their arguments."""
        fields = [field for field in self.train.fields if isinstance(field, ast.FieldIn)]
        for field, part in zip(fields, self.lowering.choices.parts, strict=True):
            yield _instead(field.value.span, call(part.optimizer or part.rate))

    def rates(self) -> Iterator[Edit]:
        """The rates of a run in stages, each with all its arguments."""
        chosen = {
            made.part.name if made.part and made.part.own_rate else "": made.choices.rate
            for made, _ in self.made
        }
        places = [("", self.train.fields), *((s.name.text, s.fields) for s in self.train.stages)]
        for name, fields in places:
            for field in fields:
                plain = field.key.text == "rate" and not isinstance(field, ast.FieldIn)
                if plain and chosen.get(name):
                    yield _instead(field.value.span, call(chosen[name]))

    def placed(self) -> list[str]:
        """The mesh and the schedule, if the file has any."""
        parts: list[str] = []
        node = self.lowering.chosen_schedule(self.train.name.text)
        meshes = {s.name.text: s for s in self.main.own("mesh") if isinstance(s, ast.Mesh)}
        wanted = node.mesh.text if node and node.mesh else ""
        for name, mesh in meshes.items():
            if name == wanted or (not wanted and node is None):
                parts.append(self.written(self.main.file, mesh, []))
        if node is not None:
            fields = [item for item in node.items if isinstance(item, ast.Field)]
            edits = list(self.fields(fields, schedule_fields(self.spec.schedule), node.span))
            parts.append(self.written(self.main.file, node, edits))
        return parts

    def fields(
        self, given: tuple[ast.Field, ...] | list[ast.Field], wanted: Mapping[str, str], span: Span
    ) -> Iterator[Edit]:
        """Calls among the fields written out, and the fields that were left out, last."""
        have = {f.key.text: f.value for f in given if not isinstance(f, ast.FieldIn)}
        source = self.checked.library.sources[span.file]
        lines: list[str] = []
        for key, text in wanted.items():
            value, nothing = have.get(key), f"# {key}: none"
            if value is None and (text or nothing not in source[span.start : span.end]):
                lines.append(f"{key}: {text}" if text else nothing)
            elif value is None:
                continue
            elif text and (isinstance(value, ast.Call) or text.endswith(")")):
                yield _instead(value.span, text)
        if lines:
            begin = "" if source[: span.end - 1].endswith("\n") else "\n"
            yield Edit(span.end - 1, span.end - 1, begin + "\n".join(lines) + "\n")


def _key(bound: Bound) -> Key:
    return Key(bound.file, bound.section.name.text)


def begun(param: Param) -> str:
    """How a parameter begins that doesn't say so."""
    if param.lookup:
        return f"normal(std: {LOOKUP_STD})"
    return f"normal(std: 1 / sqrt({' * '.join(param.source)}))"


def _callees(train: ast.Train, key: str) -> Iterator[str]:
    """The names of the rules that a run calls, in its stages too."""
    fields = [*train.fields, *(field for stage in train.stages for field in stage.fields)]
    for field in fields:
        if field.key.text == key:
            value = field.value.function if isinstance(field.value, ast.Call) else field.value
            if isinstance(value, ast.Ref):
                yield value.name


def _instead(span: Span, text: str) -> Edit:
    return Edit(span.start, span.end, text)


def _behind(span: Span, text: str) -> Edit:
    return Edit(span.end, span.end, text)


def _comment(source: str, start: int) -> int:
    """Where the comment lines right in front of a section begin."""
    at = start
    while True:
        line = source.rfind("\n", 0, max(at - 1, 0)) + 1
        if at == 0 or not source[line:at].lstrip().startswith("#"):
            return at
        at = line


def _calls(node: ast.Node) -> Iterator[ast.Call]:
    """All calls in a node."""
    if isinstance(node, ast.Call):
        yield node
    for name in node.__struct_fields__:
        value: object = getattr(node, name)
        held = cast(tuple[object, ...], value) if isinstance(value, tuple) else (value,)
        for each in held:
            if isinstance(each, ast.Node):
                yield from _calls(each)


def _typed(value: Typed) -> Iterator[Typed]:
    yield value
    for each in value.args:
        yield from _typed(each)
