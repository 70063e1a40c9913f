"""Who may import what, inside the house and outside it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT, imports, parsed, product_files, short

# The longest of these that a file's path starts with says which libraries it may import.
LIBRARIES: dict[str, set[str]] = {
    "ir/": {"msgspec", "networkx", "numpy"},
    "ir/text": {"lark", "msgspec"},
    "frontend/": {"lark", "msgspec"},
    "passes/": {"msgspec", "networkx", "numpy", "ortools", "scipy"},
    "codegen/": {"jinja2", "msgspec", "networkx", "numpy"},
    "codegen/exact_offsets": {"numpy", "scipy"},
    "codegen/jax_": {"jax", "jinja2", "msgspec", "numpy"},
    "kernels/": {"torch", "triton"},
    "kernels/catalog": {"msgspec"},
    "runtime/": {"msgspec", "numpy", "rich", "safetensors", "tokenizers", "torch"},
    "src/fllmc/cli/": {"click", "msgspec", "rich"},
    "src/fllmc/editor/": {"lsprotocol", "msgspec", "pygls", "pygments"},
    "src/fllmc/": {"msgspec"},
    "bench/": {"msgspec", "numpy", "rich", "torch"},
}

# A result may depend on the input alone, so that the same input gives the same bytes everywhere.
PURE = ("ir/", "frontend/", "passes/", "codegen/")
IMPURE = {"os.environ", "os.getenv", "random", "secrets", "time", "datetime", "uuid", "socket"}
REASONS: dict[str, str] = {}


def libraries_for(path: str) -> set[str]:
    """What the file may import besides the standard library and fllmc."""
    longest = max((p for p in LIBRARIES if path.startswith(p)), key=len, default=None)
    return LIBRARIES[longest] if longest else set()


def third_party(module: ast.Module) -> set[str]:
    """The top names of the imported libraries."""
    tops = {name.split(".")[0] for name in imports(module)}
    return tops - set(sys.stdlib_module_names) - {"fllmc"}


def impurities(module: ast.Module) -> set[str]:
    """What in the file reads the environment, a clock or chance."""
    used = set(imports(module))
    used |= {ast.unparse(node) for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    return {name for name in used if name in IMPURE}


def test_contracts_hold() -> None:
    command = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_libraries_stay_in_their_folders() -> None:
    strangers = {
        short(p): third_party(parsed(p)) - libraries_for(short(p)) for p in product_files()
    }
    assert {path: sorted(names) for path, names in strangers.items() if names} == {}


def test_the_compiler_is_pure() -> None:
    pure = [p for p in product_files() if short(p).startswith(PURE)]
    found = {short(p): sorted(impurities(parsed(p))) for p in pure}
    found = {path: names for path, names in found.items() if names}
    assert {path: names for path, names in found.items() if path not in REASONS} == {}
    assert set(REASONS) - set(found) == set(), "pure now; take it off the list"


@pytest.mark.parametrize(
    ("source", "library"),
    [
        ("import torch.nn as nn", "torch"),
        ("import ir.types", "ir"),
        ("def f():\n    from jax import numpy", "jax"),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source: str, library: str) -> None:
    assert third_party(ast.parse(source)) == {library}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import os\nhome = os.environ['HOME']", "os.environ"),
        ("from os import getenv", "os.getenv"),
        ("from time import perf_counter", "time"),
    ],
)
def test_an_impurity_is_seen(source: str, name: str) -> None:
    assert impurities(ast.parse(source)) == {name}
