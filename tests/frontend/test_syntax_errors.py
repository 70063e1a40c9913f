"""Syntax errors: the right code at the right place, all of a file in one run, none made up."""

import pytest

from fllmc.frontend import syntax_errors
from fllmc.frontend.parser import parse
from fllmc.frontend.syntax_errors import UnexpectedToken
from fllmc.ir.diagnostics import Diagnostic, all_codes, explanation
from tests.frontend.sources import LLAMA


def errors(text: str) -> tuple[Diagnostic, ...]:
    return parse(text, "a.fllm")[1]


MISTAKES = {
    "misspelt item keyword": ("  param wq", "  parm wq", "E0102", "parm", "did you mean `param`?"),
    "misspelt section": ("data c4", "dat c4", "E0102", "dat", "did you mean `data`?"),
    "misspelt return": ("return sum", "retrun sum", "E0102", "retrun", "did you mean `return`?"),
    "misspelt over": ("layer over", "layer ovr", "E0101", "ovr", "did you mean `over`?"),
    "misspelt keep": ("keep [attn", "kep [attn", "E0102", "kep", "did you mean `keep`?"),
    "misspelt shard": ("shard embed", "shrd embed", "E0102", "shrd", "did you mean `shard`?"),
    "upper-case keyword": ("param scale", "Param scale", "E0102", "Param", "did you mean `param`?"),
    "missing paren": ("body(embedding(tokens))))", "body(embedding(tokens)))", "E0103", "(", None),
    "missing paren, next item": ("b1) * grad\n", "b1 * grad\n", "E0103", "(", None),
    "missing bracket": ("mlp.gate]", "mlp.gate", "E0103", "[", None),
    "crossed brackets": ("[attn.attend, mlp.gate]", "[attn.attend, mlp.gate", "E0103", "[", None),
    "missing brace": ("eps)\n}", "eps)\n", "E0103", "{", None),
    "missing brace of dims": ("layers = 32\n}", "layers = 32\n", "E0103", "{", None),
    "missing brace of mesh": ("tensor: 8\n}", "tensor: 8", "E0103", "{", None),
    "missing last brace": ("0.05\n  }\n}\n", "0.05\n  }\n", "E0103", "{", None),
    "one paren too many": ("(step / warmup, 1)", "(step / warmup, 1))", "E0104", ")", None),
    "no result type": (" -> [batch, seq, vocab] {", " {", "E0101", "{", None),
    "equals for colon": ("batch: 512", "batch = 512", "E0101", "=", None),
    "colon for equals": ("t = min", "t : min", "E0101", ":", None),
    "missing comma": ("(peak, floor", "(peak floor", "E0101", "floor", None),
    "missing value": ("heads = 32", "heads = ", "E0101", "=", None),
    "bad number": ("batch: 512", "batch: 512q", "E0108", "512q", None),
    "huge number": ("batch: 512", "batch: " + "9" * 5000, "E0108", "9" * 5000, None),
    "infinite number": ("rank: 16", "rank: 1e999", "E0108", "1e999", None),
    "open string": ('"other.fllm"', '"other.fllm', "E0106", '"other.fllm (mlp)', None),
    "bad escape": ("data/", "data\\q/", "E0107", '"data\\q/\\"c4\\"/*.bin"', None),
    "foreign character": ("rank: 16", "rank: 16 §", "E0105", "§", None),
    "version": ("fllm 1", "fllm 2", "E0111", "2", None),
    "no header": ("fllm 1", "", "E0110", "import", None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_mistake_gives_one_error_at_its_place(mistake: str) -> None:
    old, new, code, place, help_line = MISTAKES[mistake]
    assert LLAMA.count(old) >= 1
    text = LLAMA.replace(old, new, 1)
    (found,) = errors(text)

    assert found.code == code
    assert text[found.span.start : found.span.end] == place
    assert help_line is None or help_line in found.helps()


def test_all_errors_of_a_file_come_in_one_run() -> None:
    text = LLAMA
    wanted: list[tuple[int, str]] = []
    for name in (
        "misspelt item keyword",
        "equals for colon",
        "bad number",
        "missing comma",
        "missing brace of mesh",
        "misspelt shard",
        "infinite number",
    ):
        old, new, code, _, _ = MISTAKES[name]
        if name == "bad number":
            old, new = "shuffle: true", "shuffle: 5q"
        assert old in text
        text = text.replace(old, new, 1)
        wanted.append((text.index(new), code))

    assert [d.code for d in errors(text)] == [code for _, code in sorted(wanted)]


def test_errors_in_neighbouring_lines_are_all_found() -> None:
    text = "fllm 1\nblock f(x: [a]) -> [a] {\n  parm a: b\n  c = = d\n  sub e f\n  return g(\n}\n"
    assert [(d.code, d.span.line) for d in errors(text)] == [
        ("E0102", 3),
        ("E0101", 4),
        ("E0101", 5),
        ("E0103", 6),
    ]


def test_a_mistake_in_a_call_of_many_lines_is_reported_once() -> None:
    text = (
        "fllm 1\ntrain t: m {\n  optimizer: adamw(\n    betas [0.9, 0.95],\n    eps: 1e-8,\n"
        "    decay: 0.1\n  )\n  steps 5\n}\nmesh m {\n  data 2\n}\n"
    )
    assert [d.span.line for d in errors(text)] == [4, 8, 11]


def test_unexpected_token_names_what_could_stand() -> None:
    (found,) = errors("fllm 1\nmesh m { data 2 }")
    assert isinstance(found, UnexpectedToken)
    assert found.message() == "expected `:`, found `2`"
    (found,) = errors("fllm 1\n17")
    assert found.message() == "expected a section, found `17`"
    (found,) = errors("fllm 1\nmesh m { data: }")
    assert found.message() == "expected a value, found `}`"


def test_unclosed_shows_both_places() -> None:
    text = "fllm 1\nmesh m {\n  data: 2\n\nmesh n {\n}\n"
    (found,) = errors(text)
    (label,) = found.secondary()

    assert found.span.line == 2
    assert (label.span.line, label.text) == (5, "expected `}` before this")
    (found,) = errors("fllm 1\nmesh m {")
    assert found.secondary()[0].text == "expected `}`, the file ends here"


def test_every_error_has_a_code_words_and_an_explanation() -> None:
    kinds = [k for k in all_codes().values() if k.__module__ == syntax_errors.__name__]

    assert len(kinds) == 13
    for kind in kinds:
        assert kind.code.startswith("E01")
        assert len(explanation(kind)) > 40
