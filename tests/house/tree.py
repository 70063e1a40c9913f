"""The repository as its house rules see it: the folders, the files, the functions."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOOR = ROOT / "src" / "fllmc"
PACKAGES = ("codegen", "frontend", "ir", "kernels", "passes", "runtime")
FOLDERS = (*PACKAGES, "specs")


class Extent(NamedTuple):
    """A function and the number of lines it takes, docstring and signature included."""

    name: str
    lines: int


def product_files() -> list[Path]:
    """Every Python file outside tests/, each once, by its real path."""
    tops = [ROOT / name for name in (*FOLDERS, "bench", "docs")]
    behind_door = [p for p in DOOR.rglob("*.py") if p.resolve() == p]
    return sorted(behind_door + [p for top in tops for p in top.rglob("*.py")])


def files_of_tests() -> list[Path]:
    """Every Python file under tests/."""
    return sorted((ROOT / "tests").rglob("*.py"))


def short(path: Path) -> str:
    """The path as people write it, from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(module: ast.Module) -> Iterator[Extent]:
    """Every function and method, nested ones too, named by its scope: `Class.method`."""
    todo: list[tuple[str, ast.AST]] = [("", module)]
    while todo:
        scope, node = todo.pop()
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{scope}.{child.name}".lstrip(".")
                if not isinstance(child, ast.ClassDef):
                    yield Extent(inner, (child.end_lineno or child.lineno) - child.lineno + 1)
            todo.append((inner, child))


def imports(module: ast.Module) -> Iterator[str]:
    """The dotted name of every module imported anywhere in the file, in functions too."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
