"""Files and their imports: where a path leads, and which names a file may use.

A path of an import is looked up beside the importing file first, then among the specs that ship.
Shipped files are named `fllmc/specs/...` in messages, wherever they are installed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.errors import Duplicate, ImportCycle, ImportedName, ImportMissing
from fllmc.frontend.parser import parse
from fllmc.frontend.source import read_source
from fllmc.frontend.syntax_errors import Unreadable
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError, near
from fllmc.ir.span import NOWHERE, Span

SPECS = Path(__file__).parent.parent / "specs"
SHIPPED = "fllmc/specs/"

Group = Literal[
    "block", "data", "train", "mesh", "schedule", "optimizer", "rate", "target", "checkpoint"
]
NamedSection = (
    ast.Block | ast.Adapter | ast.Data | ast.Train | ast.Mesh | ast.Schedule | ast.Optimizer
    | ast.Rate | ast.Target | ast.Checkpoint
)  # fmt: skip
GROUPS: Mapping[type, Group] = {
    ast.Block: "block",
    ast.Adapter: "block",
    ast.Data: "data",
    ast.Train: "train",
    ast.Mesh: "mesh",
    ast.Schedule: "schedule",
    ast.Optimizer: "optimizer",
    ast.Rate: "rate",
    ast.Target: "target",
    ast.Checkpoint: "checkpoint",
}


class Bound(Struct, frozen=True):
    """A section and the file that it stands in."""

    file: str
    section: NamedSection


class Module(Struct, frozen=True):
    """One file with the names it may use: its own sections and those it imports.

    `dims` gives for each dim all its declarations, the file's own first, then those of imports.
    `lost` are names that an import asks for and the imported file lacks.
    """

    file: str
    tree: ast.File
    names: Mapping[tuple[Group, str], Bound]
    dims: Mapping[str, tuple[ast.Dim, ...]]
    lost: frozenset[str] = frozenset()

    def find(self, group: Group, name: str) -> Bound | None:
        """The section of that name, if the file may use it."""
        return self.names.get((group, name))

    def known(self, group: Group) -> tuple[str, ...]:
        """All names of a group."""
        return tuple(name for kind, name in self.names if kind == group)

    def own(self, group: Group) -> tuple[NamedSection, ...]:
        """The file's own sections of a group, in order."""
        return tuple(s for s in named_sections(self.tree) if GROUPS[type(s)] == group)


class Library(Struct, frozen=True):
    """All files that were read: the main one, its imports and theirs."""

    main: str
    modules: Mapping[str, Module]
    sources: Mapping[str, str]
    found: tuple[Diagnostic, ...]


def named_sections(tree: ast.File) -> Iterator[NamedSection]:
    """The sections that have a name."""
    for section in tree.sections:
        if not isinstance(section, ast.Import | ast.Dims | ast.Require):
            yield section


def shipped(kind: str = "models") -> tuple[str, ...]:
    """Names of the specs that ship, in order."""
    return tuple(sorted(path.stem for path in (SPECS / kind).glob("*.fllm")))


def spec_path(name: str) -> str:
    """What a user's SPEC stands for: a path as it is, or the file of a shipped model or recipe."""
    if "/" in name or name.endswith(".fllm") or Path(name).exists():
        return name
    for kind in ("models", "recipes"):
        if (SPECS / kind / f"{name}.fllm").is_file():
            return f"{SHIPPED}{kind}/{name}.fllm"
    return name


def on_disk(file: str) -> Path:
    """Where a file, as named in messages, really is."""
    if file.startswith(SHIPPED):
        return SPECS / file.removeprefix(SHIPPED)
    return Path(file)


def read(file: str, span: Span = NOWHERE) -> str:
    """The text of a file; DiagnosticError if it can't be read."""
    if file.startswith(SHIPPED):
        return read_source(str(on_disk(file)), span).text
    try:
        return read_source(file, span).text
    except DiagnosticError as error:
        (found,) = error.diagnostics
        ours = near(file, (*shipped(), *shipped("recipes")))
        if isinstance(found, Unreadable) and ours and not found.suggestion:
            raise DiagnosticError(structs.replace(found, suggestion=ours)) from None
        raise


def read_all(file: str, text: str | None = None) -> Library:
    """The file with everything that it imports. `text` stands for the file's content if given."""
    reader = _Reader()
    reader.module(file, text)
    return Library(file, reader.modules, reader.sources, tuple(reader.found))


def extended(library: Library, file: str) -> Library:
    """The library with one more file, which no import names, and what that imports."""
    if file in library.modules:
        return library
    reader = _Reader(library)
    reader.module(file, None)
    return Library(library.main, reader.modules, reader.sources, tuple(reader.found))


class _Reader:
    """Reads files once each, imports first."""

    def __init__(self, start: Library | None = None) -> None:
        self.modules: dict[str, Module] = dict(start.modules) if start else {}
        self.sources: dict[str, str] = dict(start.sources) if start else {}
        self.found: list[Diagnostic] = list(start.found) if start else []
        self.open: list[str] = []

    def module(self, file: str, text: str | None, span: Span = NOWHERE) -> Module | None:
        """The file's module; None if it can't be read (which is then reported)."""
        if file in self.modules:
            return self.modules[file]
        if text is None:
            try:
                text = read(file, span)
            except DiagnosticError as error:
                self.found.extend(error.diagnostics)
                return None
        self.sources[file] = text
        tree, mistakes = parse(text, file)
        self.found.extend(mistakes)
        self.open.append(file)
        scope = _Scope(file, tree)
        self.found.extend(scope.found)
        for section in tree.sections:
            if isinstance(section, ast.Import):
                self.imported(scope, section)
        self.open.pop()
        self.modules[file] = Module(file, tree, scope.names, scope.dims, frozenset(scope.lost))
        self.found.extend(scope.clashes)
        return self.modules[file]

    def imported(self, scope: _Scope, section: ast.Import) -> None:
        """Bring the names of one import into the scope."""
        file = self.resolve(scope.file, section.path.value)
        if file is None:
            self.found.append(_missing(scope.file, section))
            return
        if file in self.open:
            chain = " imports ".join((*self.open[self.open.index(file) :], file))
            self.found.append(ImportCycle(section.path.span, chain))
            return
        module = self.module(file, None, section.path.span)
        if module:
            self.found.extend(scope.bring(section, module))

    def resolve(self, importing: str, path: str) -> str | None:
        """The file that an import's path leads to."""
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(importing), path))
        for candidate in (beside, SHIPPED + posixpath.normpath(path)):
            if candidate in self.sources or on_disk(candidate).is_file():
                return candidate
        return None


class _Scope:
    """The names of one file while its imports are read."""

    def __init__(self, file: str, tree: ast.File) -> None:
        self.file = file
        self.found: list[Diagnostic] = []
        self.clashes: list[Diagnostic] = []
        self.names: dict[tuple[Group, str], Bound] = {}
        self.places: dict[tuple[Group, str], ast.Name] = {}
        self.dims: dict[str, tuple[ast.Dim, ...]] = {}
        self.lost: set[str] = set()
        for section in named_sections(tree):
            self.give(section.name, Bound(file, section), self.found)
        for section in tree.sections:
            if isinstance(section, ast.Dims):
                for dim in section.items:
                    self.dim(dim)

    def give(self, name: ast.Name, bound: Bound, found: list[Diagnostic]) -> None:
        """Bind a name; a second binding is reported."""
        group = GROUPS[type(bound.section)]
        key = (group, name.text)
        if self.names.setdefault(key, bound) is not bound:
            if self.names[key] != bound:
                what = "name" if bound.file != self.file else group
                found.append(Duplicate(name.span, name.text, what, self.places[key].span))
            return
        self.places[key] = name

    def dim(self, dim: ast.Dim) -> None:
        """Declare one of the file's own dims."""
        first = self.dims.setdefault(dim.name.text, (dim,))[0]
        if first is not dim:
            self.found.append(Duplicate(dim.name.span, dim.name.text, "dim", first.name.span))

    def bring(self, section: ast.Import, module: Module) -> Iterator[Diagnostic]:
        """Bind the imported names and dims; gives what is not there."""
        for name, declared in module.dims.items():
            self.dims[name] = (*self.dims.get(name, ()), *declared)
        for name in section.names:
            bound = [bound for (_, known), bound in module.names.items() if known == name.text]
            for each in bound:
                self.give(name, each, self.clashes)
            if not bound:
                self.lost.add(name.text)
                known = tuple(text for _, text in module.names)
                yield ImportedName(name.span, name.text, known, section.path.value)


def _missing(importing: str, section: ast.Import) -> Diagnostic:
    path = section.path.value
    folder = on_disk(importing).parent / posixpath.dirname(path)
    there = [p.name for p in folder.glob("*.fllm")] if folder.is_dir() else []
    under = posixpath.dirname(path)
    names = tuple(sorted(posixpath.join(under, name) for name in there))
    ours = tuple(f"{kind}/{stem}.fllm" for kind in ("library", "models") for stem in shipped(kind))
    places = f"it beside `{importing}` and among the specs that ship"
    return ImportMissing(section.path.span, path, "no such file", places, (*names, *ours))
