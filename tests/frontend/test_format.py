"""The formatter: canonical files stay, tokens and comments are kept, twice is once."""

import random
import re

import pytest

from fllmc.frontend.format import format_source, tokens
from fllmc.ir.diagnostics import DiagnosticError
from tests.frontend.sources import HEAD, LLAMA


def mangled(text: str, chance: random.Random) -> str:
    """`text` with other white space and more comments between the same tokens."""
    parts = re.split(r'("(?:[^"\\\n]|\\.)*"|#[^\n]*|\s+)', text)
    result: list[str] = []
    for part in parts:
        if not part:
            continue
        if part.isspace() or not part.startswith(("#", '"')):
            part = re.sub(r"\s+", lambda _: chance.choice((" ", "\n", "\n\n\n", "\t ")), part)
        result.append(part)
        if part.startswith("#"):
            result.append("\n")
        elif chance.random() < 0.04:
            result.append(chance.choice((" # note\n", "\n  # own line\n", "\n\n# apart\n\n")))
    return "".join(result)


def comments(text: str) -> list[str]:
    bare = re.sub(r'"(?:[^"\\\n]|\\.)*"', lambda m: "_" * len(m[0]), text)
    return sorted(re.findall(r"# ?([^#\n]*[^#\s])", bare))


def test_canonical_text_stays() -> None:
    assert format_source(LLAMA) == LLAMA


@pytest.mark.parametrize("seed", range(100))
def test_mangled_text_keeps_tokens_and_comments_and_settles(seed: int) -> None:
    text = mangled(LLAMA, random.Random(seed))
    formatted = format_source(text)

    assert tokens(formatted) == tokens(text)
    assert comments(formatted) == comments(text)
    assert format_source(formatted) == formatted
    assert all(len(line) <= 100 or "#" in line for line in formatted.split("\n"))


def test_white_space_alone_decides_nothing() -> None:
    """Without comments and blank lines, every way to write a file formats to the same."""
    bare = re.sub(r" *# [^\n]*", "", LLAMA)
    flat = re.sub(r"\n+", "\n", bare)
    assert format_source(re.sub(r"\s+", " ", bare)) == format_source(flat)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "fllm 1 mesh a{}mesh b{x:1 y:-2}",
            "fllm 1\n\nmesh a {}\n\nmesh b {\n  x: 1\n  y: -2\n}\n",
        ),
        ("fllm 1\n\n\n\n# end\n", "fllm 1\n\n# end\n"),
        ("# top\n\n# two\nfllm 1 # v\n", "# top\n\n# two\nfllm 1                         # v\n"),
        ("fllm 1\nmesh a {\n\n\n # only\n\n}", "fllm 1\n\nmesh a {\n  # only\n}\n"),
        (
            "fllm 1\nmesh a { # one\n x: 1 # two\n\n\n # three\n y: 2\n # four\n}",
            "fllm 1\n\nmesh a {                       # one\n  x: 1                         # two\n"
            "\n  # three\n  y: 2\n  # four\n}\n",
        ),
        (
            "fllm 1\ndata a { x: f(a, # why\n b,) }",
            "fllm 1\n\ndata a {\n  x: f(\n    a,                         # why\n    b,\n  )\n}\n",
        ),
    ],
)
def test_small_cases(text: str, expected: str) -> None:
    assert format_source(text) == expected
    assert format_source(expected) == expected


def test_long_lines_break_outside_in() -> None:
    call = ", ".join(f"argument_{i}: value_{i}" for i in range(6))
    text = HEAD + f"block f(x: [a]) -> [a] {{ return first(x, {call}) + second({call}, -x^2) }}"
    assert format_source(text) == HEAD + (
        "block f(x: [a]) -> [a] {\n"
        "  return first(\n"
        "    x,\n"
        + "".join(f"    argument_{i}: value_{i},\n" for i in range(5))
        + "    argument_5: value_5\n"
        "  )\n"
        "    + second(\n"
        + "".join(f"      argument_{i}: value_{i},\n" for i in range(6))
        + "      -x^2\n"
        "    )\n"
        "}\n"
    )


def test_negative_numbers_stay_negative() -> None:
    """Trees that drop the sign would compare equal; tokens don't."""
    text = HEAD + "data a {\n  x: -17\n}\n"
    assert format_source(text) == text
    assert ("MINUS", "-") in tokens(text)


def test_files_with_errors_are_left_alone() -> None:
    with pytest.raises(DiagnosticError):
        format_source("fllm 1\nmesh {")
