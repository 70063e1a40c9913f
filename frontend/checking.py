"""Checking a spec: files read, names resolved, every equation of every block typed.

Nothing here depends on sizes, on data or on the mesh, so blocks of a library are checked like any
other, used or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.errors import Unused
from fllmc.frontend.library import Library, Module, named_sections, read_all
from fllmc.frontend.semantics.blocks import recursions, stacked_stacks, typed_block
from fllmc.frontend.semantics.facts import unknown_dims
from fllmc.frontend.semantics.foreign import typed_names
from fllmc.frontend.semantics.foreign_lines import Names
from fllmc.frontend.semantics.penalties import misfits
from fllmc.frontend.semantics.rules import typed_rule
from fllmc.frontend.semantics.typed import Block, Key
from fllmc.frontend.semantics.typed_rules import Rule
from fllmc.ir.diagnostics import Diagnostic


class Checked(Struct, frozen=True):
    """A spec whose equations are typed. `blocks` and `rules` are of all files that were read.

    `names` are checkpoint sections, each with the models' and blocks' parameters proven covered.
    """

    library: Library
    blocks: Mapping[Key, Block]
    rules: Mapping[Key, Rule]
    found: tuple[Diagnostic, ...]
    names: Mapping[Key, Names] = {}

    @property
    def module(self) -> Module:
        """The main file. KeyError if it could not be read."""
        return self.library.modules[self.library.main]

    @property
    def ok(self) -> bool:
        """Whether no error was found; warnings don't count."""
        return not any(found.severity == "error" for found in self.found)


def check(path: str, text: str | None = None) -> Checked:
    """The spec in a file, or in `text` as if it stood there, typed; never raises on bad input."""
    return check_library(read_all(path, text))


def check_library(library: Library) -> Checked:
    """Everything in files already read, typed; nothing when text is wrong or a file is missing."""
    if any(found.code < "E0203" for found in library.found):
        return Checked(library, {}, {}, library.found)
    found = list(library.found)
    blocks: dict[Key, Block] = {}
    rules: dict[Key, Rule] = {}
    for file, module in library.modules.items():
        for section in named_sections(module.tree):
            key = Key(file, section.name.text)
            if isinstance(section, ast.Block):
                blocks[key], mistakes, patterns = typed_block(section, module, library.modules)
                blocks.update(patterns)
                found.extend(mistakes)
            elif isinstance(section, ast.Optimizer | ast.Rate):
                rules[key], mistakes = typed_rule(section)
                found.extend(mistakes)
        for section in module.tree.sections:
            if isinstance(section, ast.Require):
                found.extend(unknown_dims(section, module.dims))
    circles = tuple(recursions(blocks))
    found.extend(circles or stacked_stacks(blocks))
    found.extend(() if circles else misfits(blocks))
    names: dict[Key, Names] = {}
    if not any(each.severity == "error" for each in found):
        names = _names(library, blocks, found)
    if not any(each.severity == "error" for each in found):
        found.extend(_unused_imports(library.modules[library.main]))
    return Checked(library, blocks, rules, tuple(found), names)


def _names(
    library: Library, blocks: Mapping[Key, Block], found: list[Diagnostic]
) -> dict[Key, Names]:
    """All checkpoint sections, typed."""
    names: dict[Key, Names] = {}
    for file, module in library.modules.items():
        for section in module.own("checkpoint"):
            if isinstance(section, ast.Checkpoint):
                read, mistakes = typed_names(section, module, library.modules, blocks)
                found.extend(each for each in mistakes if each not in found)
                if read:
                    names[Key(file, section.name.text)] = read
    return names


def _unused_imports(module: Module) -> Iterator[Diagnostic]:
    """Imported names that no section mentions."""
    mentioned = frozenset(_mentioned(module.tree))
    for section in module.tree.sections:
        if isinstance(section, ast.Import):
            for name in section.names:
                if name.text not in mentioned:
                    yield Unused(name.span, name.text, "import")


def _mentioned(tree: ast.File) -> Iterator[str]:
    for section in tree.sections:
        match section:
            case ast.Block(items=items):
                for item in items:
                    if isinstance(item, ast.Sub | ast.Stack):
                        yield item.block.text
                    if isinstance(item, ast.Stack):
                        yield from (layer.block.text for layer in item.pattern)
            case ast.Train(subject=subject, fields=own, stages=stages):
                yield subject.text
                fields = (*own, *(field for stage in stages for field in stage.fields))
                yield from (name for field in fields for name in _words(field.value))
            case ast.Adapter(model=model):
                yield model.text
            case ast.Checkpoint(subject=subject, items=items):
                yield subject.text
                layouts = (i.layout for i in items if isinstance(i, ast.Mapped))
                yield from (layout.text for layout in layouts if isinstance(layout, ast.Name))
            case ast.Schedule(train=train, mesh=mesh):
                yield from (name.text for name in (train, mesh) if name)
            case _:
                pass


def _words(value: ast.Expr) -> Iterator[str]:
    match value:
        case ast.Ref(name=name) | ast.Call(function=ast.Ref(name=name)):
            yield name
        case _:
            return
