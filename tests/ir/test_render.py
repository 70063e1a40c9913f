"""The renderer, on errors of its own, so that no real message is repeated here."""

from typing import ClassVar

from fllmc.ir.diagnostics import (
    Diagnostic,
    DiagnosticError,
    Label,
    Severity,
    did_you_mean,
    near,
)
from fllmc.ir.render import LIMIT, WINDOW, render, to_json
from fllmc.ir.span import NOWHERE, Span


class Clash(Diagnostic, frozen=True):
    """Two things of one name."""

    code: ClassVar[str] = "E9901"
    title: ClassVar[str] = "`{name}` twice"
    label: ClassVar[str] = "again here"
    note: ClassVar[tuple[str, ...]] = ("names are {{unique}}",)
    help: ClassVar[tuple[str, ...]] = ("rename `{name}`",)

    name: str
    other: Span | None = None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.other is None else (Label(self.other, "first here"),)


class Odd(Diagnostic, frozen=True):
    """Merely odd."""

    code: ClassVar[str] = "W9901"
    severity: ClassVar[Severity] = "warning"
    title: ClassVar[str] = "odd"


def at(text: str, part: str, file: str = "a.fllm", nth: int = 0) -> Span:
    start = -1
    for _ in range(nth + 1):
        start = text.index(part, start + 1)
    end = start + len(part)

    def place(offset: int) -> tuple[int, int]:
        return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)

    return Span(file, start, end, *place(start), *place(end))


def test_two_places_in_two_lines() -> None:
    text = "one\ntwo x\n" + "\n" * 8 + "  y x\n"
    found = Clash(at(text, "x", nth=1), "x", at(text, "x"))

    assert render([found], {"a.fllm": text}) == (
        "error[E9901]: `x` twice\n"
        "  --> a.fllm:11:5\n"
        "   |\n"
        " 2 | two x\n"
        "   |     - first here\n"
        "...\n"
        "11 |   y x\n"
        "   |     ^ again here\n"
        "   = note: names are {unique}\n"
        "   = help: rename `x`\n"
    )


def test_two_places_in_one_line_and_a_tab() -> None:
    text = "\tab cd\n"
    found = Clash(at(text, "cd"), "x", at(text, "ab"))

    assert render([found], {"a.fllm": text}).splitlines()[2:6] == [
        "  |",
        "1 |     ab cd",
        "  |        ^^ again here",
        "  |     -- first here",
    ]


def test_a_place_in_another_file() -> None:
    text, other = "x\n", "\n\ny\n"
    found = Clash(at(text, "x"), "x", at(other, "y", "b.fllm"))

    assert render([found], {"a.fllm": text, "b.fllm": other}).splitlines()[1:9] == [
        " --> a.fllm:1:1",
        "  |",
        "1 | x",
        "  | ^ again here",
        " ::: b.fllm:3:1",
        "  |",
        "3 | y",
        "  | - first here",
    ]


def test_several_lines() -> None:
    text = "  f(a,\n    b,\n    c)\n" + "d\n" * 20
    short, long = at(text, "f(a,\n    b,\n    c)"), at(text, text)

    assert render([Odd(short)], {"a.fllm": text}).splitlines()[3:] == [
        "1 |   f(a,",
        "  |   ^^^^",
        "2 |     b,",
        "  |     ^^",
        "3 |     c)",
        "  |     ^^",
    ]
    assert "..." in render([Odd(long)], {"a.fllm": text})


def test_without_source_or_place() -> None:
    span = Span("b.fllm", 5, 6, 2, 3, 2, 4)

    assert render([Clash(span, "x")], {}).splitlines()[:3] == [
        "error[E9901]: `x` twice",
        " --> b.fllm:2:3",
        "  = again here",
    ]
    assert "-->" not in render([Clash(NOWHERE, "x")], {})
    assert " --> b.fllm:2:3\n" in render([Odd(span)], {"b.fllm": "shorter now"})


def test_the_end_of_the_file() -> None:
    assert "2 |\n  | ^\n" in render([Odd(Span("a", 2, 2, 2, 1, 2, 1))], {"a": "x\n"})


def test_wide_and_hostile_characters() -> None:
    text = "日本 x\x1b[31m\u202e\n"
    out = render([Clash(at(text, "x"), "\x1b[0m")], {"a.fllm": text})

    assert "\x1b" not in out and "\u202e" not in out
    assert "1 | 日本 x\ufffd[31m\ufffd\n  |      ^ again here\n" in out


def test_long_lines_are_cut_around_the_place() -> None:
    text = "a" * 50_000 + "X" + "b" * 50_000
    lines = render([Odd(at(text, "X"))], {"a.fllm": text}).splitlines()

    assert len(lines[3]) <= WINDOW + 4
    assert lines[3][lines[4].index("^")] == "X"


def test_sorted_once_each_and_not_too_many() -> None:
    text = "".join(f"{i:03}\n" for i in range(50))
    found = [Odd(at(text, f"{i:03}")) for i in reversed(range(50))]
    out = render(found + found, {"a.fllm": text})

    assert out.index("a.fllm:1:1") < out.index("a.fllm:2:1")
    assert out.count("warning[W9901]") == LIMIT
    assert out.endswith(f"... and {50 - LIMIT} more\n")
    assert render([], {}) == ""


def test_colour_changes_nothing_but_colour() -> None:
    import re

    text = "x y\n"
    found = [Clash(at(text, "y"), "y", at(text, "x"))]
    plain, painted = render(found, {"a.fllm": text}), render(found, {"a.fllm": text}, color=True)

    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain != painted


def test_json_has_everything() -> None:
    text = "x y\n"
    data = to_json(Clash(at(text, "y"), "y", at(text, "x")))

    assert data["code"] == "E9901" and data["message"] == "`y` twice"
    assert data["span"] == {
        "file": "a.fllm", "line": 1, "column": 3, "end_line": 1, "end_column": 4,
        "start": 2, "end": 3,
    }  # fmt: skip
    assert data["labels"][0]["text"] == "first here"
    assert (data["notes"], data["helps"]) == (["names are {unique}"], ["rename `y`"])


def test_near_names() -> None:
    assert near("embd", ["embed", "heads"]) == "embed"
    assert near("zzz", ["embed"]) is None
    assert near("x" * 10_000, ["x"]) is None
    assert did_you_mean("embd", ["embed"]) == ("did you mean `embed`?",)
    assert did_you_mean("zzz", ["embed"]) == ()


def test_an_exception_carries_diagnostics() -> None:
    error = DiagnosticError(Odd(NOWHERE), Odd(NOWHERE))
    assert len(error.diagnostics) == 2 and "W9901" in str(error)
