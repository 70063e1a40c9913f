"""Pipelines: their text, the order of levels, what is verified, timed and dumped."""

import re
from typing import ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.program import Level, Program
from fllmc.ir.settings import Lora
from fllmc.ir.settings import Recompute as Directive
from fllmc.ir.span import Span
from fllmc.ir.text import parse_program
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.base import AnyLevelPass, Context, Pass
from fllmc.passes.errors import (
    UnknownOption,
    UnknownPass,
    UnreadablePipeline,
    WrongLevel,
    WrongOption,
)
from fllmc.passes.inline import Inline
from fllmc.passes.pipeline import PASSES
from fllmc.passes.pipeline_text import parse_pipeline, print_pipeline
from fllmc.passes.recompute import Recompute
from fllmc.passes.runner import PassFailed, dump_after, run_pipeline
from fllmc.passes.share_equal import ShareEqual
from tests.passes.stack_programs import context, model_program

KNOWN = PASSES


class Rate(Pass, frozen=True):
    name: ClassVar[str] = "rate"

    z_loss: float = 0.0
    on: bool = False
    word: str = "plain"
    count: int = 3


class Drops(AnyLevelPass, frozen=True):
    """Gives an invalid program."""

    name: ClassVar[str] = "drops"

    def run(self, program: Program, cx: Context) -> Program:
        return msgspec.structs.replace(program, functions=program.functions[1:])


class Raises(AnyLevelPass, frozen=True):
    name: ClassVar[str] = "raises"

    def run(self, program: Program, cx: Context) -> Program:
        raise KeyError("lost")


class Moves(Pass, frozen=True):
    """Says that it gives a training program, but does not."""

    name: ClassVar[str] = "moves"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "training"

    def run(self, program: Program, cx: Context) -> Program:
        return program


class Clock:
    """Each look takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


WORDS = st.text(max_size=8) | st.sampled_from(["true", "inf", "nan", "-1", "1e3", "body.*", "a b"])
FLOATS = st.floats(allow_nan=False)
SPANS = st.builds(Span, WORDS, *[st.integers(0, 10**9)] * 6)
STEPS = st.one_of(
    st.builds(Rate, FLOATS, st.booleans(), WORDS, st.integers(-(10**15), 10**15)),
    st.builds(
        Recompute,
        st.lists(st.builds(Directive, WORDS, st.lists(WORDS, max_size=2).map(tuple), SPANS)).map(
            tuple
        ),
        st.booleans(),
    ),
    st.builds(
        ApplyAdapter,
        st.lists(WORDS, max_size=2).map(tuple),
        st.lists(WORDS, max_size=2).map(tuple),
        st.lists(st.builds(Lora, WORDS, st.integers(), FLOATS, FLOATS, SPANS), max_size=2).map(
            tuple
        ),
    ),
    st.just(Inline()),
)


@given(st.lists(STEPS, max_size=4))
def test_text_round_trip(passes: list[Pass]) -> None:
    text = print_pipeline(passes)
    again = parse_pipeline(text, (*KNOWN, Rate))
    assert again == tuple(passes)
    assert print_pipeline(again) == text


def test_every_pass_says_what_it_is() -> None:
    assert len({step.name for step in PASSES}) == len(PASSES)
    for step in PASSES:
        assert re.fullmatch("[a-z]+(-[a-z]+)*", step.name)
        assert step.keeps in ("bits", "math", "new")
        assert parse_pipeline(step.name, PASSES) == (step(),)
        assert step.__doc__


def test_text_reads_well() -> None:
    passes = (Inline(), Rate(0.0001, True), Recompute((Directive("body.*", ("attn.attend",)),)))
    text = (
        "inline,rate{z-loss=0.0001,on=true},"
        "recompute{selectors=[{selector=body.*,keep=[attn.attend]}]}"
    )
    assert print_pipeline(passes) == text
    spaced = text.replace(",", " ,\n ").replace("{", "{ ")
    assert parse_pipeline(spaced, (*KNOWN, Rate)) == passes
    assert parse_pipeline("rate{z-loss=1}", (Rate,)) == (Rate(1.0),)
    assert parse_pipeline("", KNOWN) == ()


@pytest.mark.parametrize(
    ("text", "kind", "place", "words"),
    [
        ("inline,drop-unsed", UnknownPass, "8", "`drop-unused`"),
        ("rate{z-los=1}", UnknownOption, "6", "`z-loss`"),
        ("inline{x=1}", UnknownOption, "8", "no options"),
        ("rate{count=word}", WrongOption, "1", ""),
        ("rate{count=1,count=2}", UnreadablePipeline, "14", ""),
        ("recompute{selectors=[{keep=[]}]}", WrongOption, "1", ""),
        ("recompute{selectors=[{selektor=a}]}", WrongOption, "1", ""),
        ("inline drop-unused", UnreadablePipeline, "8", ""),
        ("inline,", UnreadablePipeline, "8", ""),
        ("rate{word=}", UnreadablePipeline, "11", ""),
        ('rate{word="\\q"}', UnreadablePipeline, "11", ""),
        ("rate{count=" + "1" * 5000 + "}", UnreadablePipeline, "12", ""),
        ("rate{count=" + "[" * 5000, UnreadablePipeline, "44", ""),
        ("rate{count=", UnreadablePipeline, "12", ""),
        ("§", UnreadablePipeline, "1", ""),
    ],
)
def test_mistakes_in_text(text: str, kind: type[Diagnostic], place: str, words: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        parse_pipeline(text, (*KNOWN, Rate))
    (found,) = caught.value.diagnostics
    assert type(found) is kind
    assert str(found.span) == f"pipeline:1:{place}"
    assert words in " ".join(found.helps())
    assert found.message() and found.primary()


@given(st.text(alphabet='rate{}[],="z-los1.e* \n', max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_pipeline(text, (*KNOWN, Rate))
    except DiagnosticError as error:
        assert error.diagnostics


def test_runs_times_and_dumps() -> None:
    seen: list[tuple[int, str, int]] = []
    program, timings = run_pipeline(
        model_program(),
        (Inline(), ShareEqual()),
        context(),
        Clock(),
        lambda number, name, p: seen.append((number, name, len(p.functions))),
    )
    assert [(t.name, t.seconds, t.verify_seconds) for t in timings] == [
        ("inline", 1.0, 1.0),
        ("share-equal", 1.0, 1.0),
    ]
    assert seen == [(0, "input", 6), (1, "inline", 3), (2, "share-equal", 3)]
    assert [f.name for f in program.functions] == ["layer", "model", "rate"]


def test_dumps_after_one_pass() -> None:
    seen: list[int] = []
    dump = dump_after("inline", lambda number, name, program: seen.append(number))
    run_pipeline(model_program(), (ShareEqual(), Inline()), context(), Clock(), dump)
    assert seen == [2]


def test_levels_are_checked_before_anything_runs() -> None:
    with pytest.raises(DiagnosticError) as caught:
        run_pipeline(model_program(), (Raises(), Recompute()), context(), Clock())
    (found,) = caught.value.diagnostics
    assert isinstance(found, WrongLevel)
    assert "recompute" in found.message() and "level model" in found.message()


@pytest.mark.parametrize(
    ("step", "why"), [(Drops(), "no function silu"), (Raises(), "KeyError"), (Moves(), "model")]
)
def test_a_failing_pass_leaves_a_reproducer(step: Pass, why: str) -> None:
    with pytest.raises(PassFailed, match=f"pass {step.name} failed.*{why}") as caught:
        run_pipeline(model_program(), (step,), context(), Clock())
    assert caught.value.name == step.name
    assert parse_program(caught.value.reproducer) == model_program()
    assert caught.value.reproducer.startswith(f"// passes: {step.name}\n")
