"""What is known of an open text: diagnostics, names, types and sizes. Nothing here speaks LSP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from msgspec import Struct

from fllmc.editor.symbols import Mention, Symbol, at, mentions
from fllmc.frontend import ast
from fllmc.frontend.checking import Checked, check_library
from fllmc.frontend.fixes import edited, fixes_of
from fllmc.frontend.library import SHIPPED, Library, read_all
from fllmc.frontend.loading import load
from fllmc.frontend.semantics.forms import FORMS
from fllmc.frontend.semantics.sizes import SizeTable
from fllmc.frontend.semantics.typed import Key, Kind
from fllmc.ir.diagnostics import Diagnostic, Edit, Fix
from fllmc.ir.quantities import bytes_text
from fllmc.ir.render import ordered
from fllmc.ir.settings import Spec
from fllmc.ir.span import Span

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
WIDTHS = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2}
INDEX_BYTES = 8
"""Positions of a dim are 64-bit integers."""


class Refused(Exception):
    """A request that can't be carried out, with the reason for the user."""


class Analysis(Struct, frozen=True):
    """One version of one file. `spec` is that of its run, if it has one without mistakes."""

    file: str
    text: str
    library: Library
    checked: Checked
    found: tuple[Diagnostic, ...]
    spec: Spec | None
    names: tuple[Mention, ...]

    def size(self, dim: str) -> int | None:
        """The size of a dim: in the run if there is one, else by its declaration."""
        if self.spec is not None:
            known = {each.name: each.size for each in self.spec.program.dims}
            if dim in known:
                return known[dim]
        module = self.library.modules.get(self.file)
        return SizeTable(module.dims, {}).size(dim) if module else None


def analysed(file: str, text: str) -> Analysis:
    """Everything that is known of a text as if it stood in the file."""
    spec, found, _ = load(file, text=text, needs_run=False)
    library = read_all(file, text)
    names = mentions(library, file)
    return Analysis(file, text, library, check_library(library), ordered(found), spec, names)


def definition(known: Analysis, offset: int) -> Span | None:
    """Where the name at an offset is declared; of an import's path, the file's beginning."""
    hit = at(known.names, offset)
    if hit is not None:
        return hit.symbol.place
    module = known.library.modules.get(known.file)
    for section in module.tree.sections if module else ():
        if (
            isinstance(section, ast.Import)
            and section.path.span.start <= offset <= section.path.span.end
        ):
            path = section.path.value
            for file in known.library.modules:
                if file.endswith(path.removeprefix("./")):
                    return Span(file, 0, 0, 1, 1, 1, 1)
    return None


def hover(known: Analysis, offset: int) -> str | None:
    """What the name at an offset is: its type, and with sizes its shape and bytes."""
    hit = at(known.names, offset)
    if hit is None:
        return _function(known.text, offset)
    symbol = hit.symbol
    match symbol.what:
        case "dim":
            size = known.size(symbol.name)
            return f"dim {symbol.name}" + (f" = {size:_}" if size else ": no size here")
        case "section":
            return _section(known, symbol)
        case "axis":
            return f"mesh axis {symbol.name}"
        case "local":
            return _local(known, hit)


def _function(text: str, offset: int) -> str | None:
    for word in NAME.finditer(text, max(0, offset - 80), offset + 80):
        if word.start() <= offset <= word.end() and word[0] in FORMS:
            return str(FORMS[word[0]])
    return None


def _section(known: Analysis, symbol: Symbol) -> str:
    block = known.checked.blocks.get(Key(symbol.place.file, symbol.name))
    where = f"  # {symbol.place.file}" if symbol.place.file != known.file else ""
    if block is None:
        return f"{symbol.name}{where}"
    given = ", ".join(f"{each.name}: {each.kind}" for each in block.signature.inputs)
    what = "model" if block.is_model else "block"
    return f"{what} {symbol.name}({given}) -> {block.signature.result}{where}"


def _local(known: Analysis, hit: Mention) -> str | None:
    name = hit.symbol.name
    block = known.checked.blocks.get(Key(known.file, hit.owner))
    if block is None:
        return name
    if name in block.params:
        param = block.params[name]
        shape = str(param) if param.arrow else f"[{', '.join(param.target)}]"
        return _shown(known, f"param {name}: {shape}", param.stored, "params")
    if name in block.nested:
        nested = block.nested[name]
        over = f" over {nested.over}" if nested.over else ""
        return f"{'stack' if over else 'sub'} {name}: {nested.block.name}{over}"
    kinds = {each.name: each.kind for each in block.signature.inputs}
    kinds |= {step.name: step.value.kind for step in block.steps}
    kind = kinds.get(name)
    if kind is None or kind.broken:
        return name
    return _shown(known, f"{name}: {kind}", kind.dims, "compute", kind)


def _shown(
    known: Analysis, head: str, dims: tuple[str, ...], use: str, kind: Kind | None = None
) -> str:
    """The head, and a line with shape and bytes if all sizes are known."""
    sizes = [known.size(dim.rstrip("'")) for dim in dims]
    if any(size is None for size in sizes) or (kind and kind.host):
        return head
    whole = [size for size in sizes if size is not None]
    precision = known.spec.train.precision if known.spec else None
    dtype = getattr(precision, use) if precision else "f32"
    width = WIDTHS.get(dtype, 4)
    if kind and kind.form == "index":
        dtype, width = "i64", INDEX_BYTES
    shape = " x ".join(f"{size:_}" for size in whole) or "one number"
    return f"{head}\n{shape}, {bytes_text(prod(whole) * width)} in {dtype}"


def rename(known: Analysis, offset: int, new: str) -> tuple[Edit, ...]:
    """The edits that give the name at an offset another name everywhere in the file and its
    imports. Refused if the result has more mistakes, or a file that ships would change."""
    hit = at(known.names, offset)
    if hit is None:
        raise Refused("there is no name here that can be renamed")
    if not NAME.fullmatch(new):
        raise Refused(f"`{new}` is no name: letters, digits and `_`, no digit first")
    edits = tuple(_renamed(known, hit.symbol, new))
    if any(edit.span.file.startswith(SHIPPED) for edit in edits):
        raise Refused(f"`{hit.symbol.name}` is declared in {hit.symbol.place.file}, which ships")
    own = [edit for edit in edits if edit.span.file == known.file]
    if len(own) == len(edits):
        _, found, _ = load(known.file, text=edited(known.text, own), needs_run=False)
        if len(found) > len(known.found):
            raise Refused(f"`{new}` would be a mistake here: {ordered(found)[0].message()}")
    return edits


def _renamed(known: Analysis, symbol: Symbol, new: str) -> Iterator[Edit]:
    for file in known.library.modules:
        names = known.names if file == known.file else mentions(known.library, file)
        for each in names:
            same = each.symbol == symbol or (
                symbol.what == each.symbol.what == "dim" and each.symbol.name == symbol.name
            )
            if same:
                yield Edit(each.span, new, symbol.name)


SELECTING = re.compile(
    r"^\s*(?:freeze|tune|lora|quantize|recompute|offload|compress)\s+[\w.*{}, ]*$"
    r"|\bin\s+[\w.*{}]*$|\bkeep\s*\[[^\]]*$|\bno_decay:\s*\[?[^\]]*$"
)


def completions(known: Analysis, offset: int, last_good: Analysis) -> Iterator[tuple[str, str]]:
    """Names that could stand at an offset, each with what it is; paths where a selector stands.

    `last_good` is the last version of the text that could be read.
    """
    line = known.text[:offset].rpartition("\n")[2]
    if SELECTING.search(line):
        yield from ((path, "path") for path in paths(last_good))
        return
    module = last_good.library.modules.get(last_good.file)
    if module is None:
        return
    owner = _owner(known.text, offset)
    seen: set[str] = set()
    for each in last_good.names:
        if each.symbol.what == "local" and each.owner == owner and each.symbol.name not in seen:
            seen.add(each.symbol.name)
            yield each.symbol.name, "name"
    for dim in module.dims:
        size = last_good.size(dim)
        yield dim, f"dim = {size:_}" if size else "dim"
    for group, name in module.names:
        yield name, group
    for name, form in FORMS.items():
        yield name, str(form)
    for name, axis in ((m.symbol.name, m.symbol.what) for m in last_good.names):
        if axis == "axis" and name not in seen:
            seen.add(name)
            yield name, "axis"


def paths(known: Analysis) -> tuple[str, ...]:
    """Paths of parameters and of what holds them, `*` for the layers of a stack."""
    if known.spec is None:
        return ()
    found: dict[str, None] = {"*": None}
    for parameter in known.spec.program.parameters:
        parts = parameter.name.split(".")
        if parameter.stack:
            layer = slice(parameter.depth, parameter.depth + bool(parameter.period))
            parts[layer] = ["*"]
        for length in range(1, len(parts) + 1):
            if parts[length - 1] != "*":
                found[".".join(parts[:length])] = None
    return tuple(found)


def _owner(text: str, offset: int) -> str:
    """The name of the section that an offset lies in, by the words at the start of lines."""
    heads = re.findall(r"^[a-z]+[ \t]+([A-Za-z_]\w*)", text[:offset], re.MULTILINE)
    return heads[-1] if heads else ""


def quick_fixes(known: Analysis, start: int, end: int) -> Iterator[tuple[Diagnostic, Fix]]:
    """The fixes of what is found between two offsets."""
    for found in known.found:
        if found.span.file == known.file and found.span.start <= end and start <= found.span.end:
            for fix in fixes_of(found, known.text):
                yield found, fix
