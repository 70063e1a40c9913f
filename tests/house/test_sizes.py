"""Files and functions stay readable; a larger one states its reason here."""

import ast
from collections.abc import Mapping

from tests.house.tree import functions, parsed, product_files, short

FILE_LINES = 400
FUNCTION_LINES = 50

LONG_FILES: dict[str, str] = {
    "codegen/memory.py": "one planner, whose rules for what shares storage must be read together",
    "codegen/torch_ops.py": "one rule for each op, and nothing else",
    "frontend/ast.py": "one class for each construct of the language, and nothing else",
    "kernels/catalog.py": "one entry for each kernel, and its cost",
}
LONG_FUNCTIONS: dict[str, str] = {}


def test_files() -> None:
    lines = {short(p): len(p.read_text(encoding="utf-8").splitlines()) for p in product_files()}
    _check(lines, FILE_LINES, LONG_FILES)


def test_functions() -> None:
    lines = {
        f"{short(path)}:{function.name}": function.lines
        for path in product_files()
        for function in functions(parsed(path))
    }
    _check(lines, FUNCTION_LINES, LONG_FUNCTIONS)


def test_a_function_is_measured_with_its_nested_ones() -> None:
    source = "class A:\n    def f(self):\n        def g():\n            pass\n        return g\n"
    assert {f.name: f.lines for f in functions(ast.parse(source))} == {"A.f": 4, "A.f.g": 2}


def _check(lines: Mapping[str, int], limit: int, reasons: Mapping[str, str]) -> None:
    over = {name: count for name, count in lines.items() if count > limit}
    assert {name: n for name, n in over.items() if name not in reasons} == {}, "too long"
    assert set(reasons) - set(over) == set(), "short enough now; take it off the list"
    assert [name for name, reason in reasons.items() if not reason.strip()] == []
