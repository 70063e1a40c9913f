"""The parser: what it builds, whether its tables are current, and that nothing breaks it."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fllmc.frontend import ast, tables
from fllmc.frontend.machine import MAX_DEPTH
from fllmc.frontend.parser import Parser, parse
from fllmc.frontend.source import LARGEST, read_source
from fllmc.ir.diagnostics import DiagnosticError
from tests.frontend.sources import HEAD, LLAMA


def tree_of(text: str) -> ast.File:
    tree, found = parse(text, "a.fllm")
    assert found == ()
    return tree


def value_of(text: str) -> ast.Expr:
    """The expression `text`, as the value of an equation."""
    block = tree_of(HEAD + "block f(x: [a]) -> [a] { y = " + text + " }").sections[0]
    assert isinstance(block, ast.Block)
    item = block.items[0]
    assert isinstance(item, ast.Equation)
    return item.value


def nodes(node: object) -> Iterator[ast.Node]:
    if isinstance(node, tuple):
        for part in node:
            yield from nodes(part)
    elif isinstance(node, ast.Node):
        yield node
        for field in node.__struct_fields__:
            yield from nodes(getattr(node, field))


def test_the_shipped_tables_are_those_of_the_grammar() -> None:
    """A strict build also proves the grammar free of conflicts and terminal collisions."""
    built = tables.build(tables.GRAMMAR.read_text("utf-8"))

    assert tables.encode(built) == tables.TABLES.read_text("utf-8")


def test_lark_reads_the_same_tokens_and_accepts_the_same_text() -> None:
    """Our driver of Lark's tables agrees with Lark's own, contextual keywords included."""
    from lark import Lark

    grammar = tables.GRAMMAR.read_text("utf-8")
    lark = Lark(grammar, parser="lalr", keep_all_tokens=True, maybe_placeholders=False)
    expected = [
        (t.type, str(t)) for t in lark.parse(LLAMA).scan_values(lambda v: hasattr(v, "type"))
    ]
    parser = Parser(LLAMA, "a.fllm", lambda rule, parts, span: None)
    parser.run()

    assert [(t.kind, t.text) for t in parser.tokens[:-1]] == expected


def test_every_construct_parses_and_has_its_place() -> None:
    tree = tree_of(LLAMA)

    assert {type(s) for s in tree.sections} == set(get_args(ast.Section))
    lines = LLAMA.split("\n")
    for node in nodes(tree):
        span = node.span
        assert 0 <= span.start < span.end <= len(LLAMA)
        assert sum(len(line) + 1 for line in lines[: span.line - 1]) + span.column - 1 == span.start
        if isinstance(node, ast.Name):
            assert LLAMA[span.start : span.end] == node.text


def test_precedence() -> None:
    """Power binds tighter than a sign on its left; the others associate to the left."""

    def shape(node: ast.Expr) -> str:
        match node:
            case ast.Binary(op=op, left=left, right=right):
                return f"({shape(left)}{op}{shape(right)})"
            case ast.Unary(value=value):
                return f"(-{shape(value)})"
            case ast.Ref(name=name):
                return name
            case _:
                raise AssertionError(node)

    assert shape(value_of("a - b - c * d / e")) == "((a-b)-((c*d)/e))"
    assert shape(value_of("-a^b^-c * d")) == "((-(a^(b^(-c))))*d)"
    assert shape(value_of("a * -b - (c - d)")) == "((a*(-b))-(c-d))"


def test_numbers_and_strings() -> None:
    data = tree_of(
        HEAD + r'data d { a: 1_000 b: 1.5 c: -2 d: 1e3 e: "x\n\"\\y" f: false }'
    ).sections[0]
    assert isinstance(data, ast.Data)
    values = [f.value for f in data.fields]

    assert [getattr(v, "value", None) for v in values] == [1000, 1.5, -2, 1000.0, 'x\n"\\y', False]
    assert isinstance(values[0], ast.Number) and isinstance(values[0].value, int)
    assert isinstance(values[3], ast.Number) and isinstance(values[3].value, float)


def test_record_values_tell_names_from_selectors() -> None:
    train = tree_of(HEAD + "train t: m { a: x b: x.y c: [*.s, z] d: f(g, k: h.*) }").sections[0]
    assert isinstance(train, ast.Train)
    a, b, c, d = (f.value for f in train.fields)

    assert isinstance(a, ast.Ref)
    assert isinstance(b, ast.Selector) and str(b) == "x.y"
    assert isinstance(c, ast.List) and str(c.items[0]) == "*.s" and isinstance(c.items[1], ast.Ref)
    assert isinstance(d, ast.Call) and [x.key and x.key.text for x in d.arguments] == [None, "k"]


def test_keywords_are_words_where_they_cannot_stand() -> None:
    text = HEAD + "mesh data { data: 2 train: 3 over: 4 in: 5 }\nblock f(model: [over]) -> [on] {"
    text += " param param: data -> for\n x = g(over: model, in: keep) return over }"

    assert len(tree_of(text).sections) == 2
    text = HEAD + "data data { a: b in: c keep: d.e over: *.f shard: (g, h) rate: i(j, in: k) }"
    data = tree_of(text).sections[0]
    assert isinstance(data, ast.Data)
    assert [f.key.text for f in data.fields] == ["a", "in", "keep", "over", "shard", "rate"]


def test_optimizer_parameters_may_take_tuples_apart() -> None:
    tree = tree_of(HEAD + "optimizer o(a, b = 1, c: (d, e) = (1, 2), f: (g, h),) { return a }")
    optimizer = tree.sections[0]
    assert isinstance(optimizer, ast.Optimizer)

    assert [
        (p.name.text, [n.text for n in p.parts], p.default is not None)
        for p in optimizer.parameters
    ] == [("a", [], False), ("b", [], True), ("c", ["d", "e"], True), ("f", ["g", "h"], False)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\ufeff",
        "\0" * 50,
        "fllm",
        "fllm 1\nblock f(x: [a]) -> [b] { return " + "(" * 10_000,
        "fllm 1\nblock f(x: [a]) -> [b] { return " + "(" * 9_999 + "x" + ")" * 9_999 + " }",
        "fllm 1\ndims { a = " + "-" * 50_000 + "1 }",
        "fllm 1\ndims { a = " + "1 + " * 50_000 + "1 }",
        "fllm 1\ndims { a = b" + ".c" * 50_000 + " }",
        "fllm 1\ndims { a = b" + "(c)" * 50_000 + " }",
        "fllm 1\nadapter a on b { freeze " + "{" * 10_000,
        "fllm 1\nblock f(x: [a]) -> [b] {\n" + "a b c\n" * 20_000,
        'fllm 1\ndata a { x: "' + "y" * 20_000,
        "fllm 1\ndims { a = " + "9" * 10_000 + " }",
        "fllm 1\ndims { größe = 3 }",
        "fllm 1\rdims {\r",
        ")\n" * 20_000,
    ],
    ids=range(17),
)
def test_hostile_texts_get_diagnostics(text: str) -> None:
    assert parse(text, "a.fllm")[1] != ()


def test_trees_are_shallow() -> None:
    """As deep as is allowed, so that recursion over a tree stays far from Python's limit."""
    deep = value_of("(" * (MAX_DEPTH - 10) + "x" + ")" * (MAX_DEPTH - 10))
    assert isinstance(deep, ast.Ref)

    def depth(node: object) -> int:
        fields = getattr(node, "__struct_fields__", ())
        parts = node if isinstance(node, tuple) else [getattr(node, f) for f in fields]
        return 1 + max(map(depth, parts), default=0) if isinstance(node, (tuple, ast.Node)) else 0

    for text in ("-" * 90 + "1", "1 + " * 90 + "1", "f(" * 40 + "x" + ")" * 40):
        assert depth(value_of(text)) < 2 * MAX_DEPTH + 20


@given(st.text(max_size=200))
def test_any_text_parses_without_exception(text: str) -> None:
    parse(text, "a.fllm")
    parse(HEAD + text, "a.fllm")


def test_damaged_files_parse_without_exception() -> None:
    chance = random.Random(7)
    for _ in range(60):
        text = list(LLAMA)
        for _ in range(chance.randint(1, 10)):
            place = chance.randrange(len(text))
            text[place : place + chance.choice((0, 1, 1, 30))] = chance.choice('(){}[]",:=.*#\n x0')
        found = parse("".join(text), "a.fllm")[1]
        assert all(0 <= d.span.start <= d.span.end <= len(text) for d in found)


def test_line_ends_and_marks_make_no_difference() -> None:
    def names(text: str) -> list[str]:
        return [node.text for node in nodes(tree_of(text)) if isinstance(node, ast.Name)]

    for text in ("\ufeff" + LLAMA, LLAMA.replace("\n", "\r\n"), LLAMA.replace("  ", "\t")):
        assert names(text) == names(LLAMA)


def test_trees_are_plain_data() -> None:
    assert b"pretrain" in msgspec.json.encode(tree_of(LLAMA))


def test_parsing_needs_no_lark() -> None:
    code = "import sys, fllmc.frontend.format; sys.exit('lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_files(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "llama.fllm").write_bytes(b"\xef\xbb\xbffllm 1\r\n")
    (folder / "binary.fllm").write_bytes(b"fllm \xff\xfe")
    (folder / "large.fllm").write_bytes(b" " * (LARGEST + 1))

    assert read_source(str(folder / "llama.fllm")).text == "fllm 1\n"
    for name, code in {
        "lama.fllm": "E0113",
        "binary.fllm": "E0112",
        "large.fllm": "E0113",
        ".": "E0113",
        "nul\0": "E0113",
    }.items():
        with pytest.raises(DiagnosticError) as caught:
            read_source(str(folder / name))
        assert [d.code for d in caught.value.diagnostics] == [code]
    with pytest.raises(DiagnosticError) as caught:
        read_source(str(folder / "lama.fllm"))
    assert "llama.fllm" in caught.value.diagnostics[0].helps()[0]
