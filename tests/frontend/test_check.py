"""Kinds of values: what the checker infers, and that no text brings it down."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fllmc.frontend import check, load
from fllmc.frontend.library import SPECS
from fllmc.frontend.semantics.typed import Block, Typed
from fllmc.ir.render import render
from fllmc.ir.verify import verify

DIMS = (
    "fllm 1\ndims { batch seq key embed = 8 heads = 2 kv_heads = 1 head_dim = 4 ffn = 3 vocab }\n"
)


def block(body: str, result: str = "[batch, seq, embed]") -> Block:
    head = f"block b(x: [batch, seq, embed], t: vocab[batch, seq]) -> {result} {{\n"
    checked = check("a.fllm", f"{DIMS}{head}{body}\n}}")
    assert checked.ok, render(checked.found, checked.library.sources)
    (found,) = checked.blocks.values()
    return found


def value(expression: str, params: str = "") -> Typed:
    """The expression as an equation's value."""
    return block(f"{params}\ny = {expression}\nreturn x").steps[0].value


KINDS = {
    "x + 1": "[batch, seq, embed]",
    "1 / sqrt(embed)": "a number",
    "-pi ^ 2": "a number",
    "x * sum[seq](x)": "[batch, seq, embed]",
    "sum[seq](x) * x": "[batch, seq, embed]",
    "w(x)": "[batch, seq, heads, head_dim]",
    "w.T(w(x))": "[batch, seq, embed]",
    "table(t)": "[batch, seq, embed]",
    "table.T(x)": "[batch, seq, vocab]",
    "square(x)": "[batch, seq, embed]",
    "place(positions(along: seq))": "[seq, embed]",
    "positions(along: seq)": "seq[seq]",
    "x{seq = key}": "[batch, key, embed]",
    "t{seq = key}": "vocab[batch, key]",
    "dot[embed](x, x{seq = key})": "[batch, seq, key]",
    "dot[embed](x, x)": "[batch, seq]",
    "mean[seq, batch](x)": "[embed]",
    "max[embed](x)": "[batch, seq]",
    "max(x, 0)": "[batch, seq, embed]",
    "logsumexp(x, over: (seq, embed))": "[batch]",
    "softmax(x, over: embed)": "[batch, seq, embed]",
    "where(less(x, 0), 0, x)": "[batch, seq, embed]",
    "rope(x, along: seq)": "[batch, seq, embed]",
    "attend(w(x), w(x), w(x), along: seq, mask: none)": "[batch, seq, heads, head_dim]",
    "attend(w(x), k(x), k(x), along: seq, scale: 1)": "[batch, seq, heads, head_dim]",
    "swiglu(sum[seq](x), x)": "[batch, seq, embed]",
}
PARAMS = """
  param w: embed -> (heads, head_dim)
  param k: embed -> (kv_heads, head_dim)
  param table: vocab -> embed
  param square: embed -> embed
  param place: seq -> embed
"""


@pytest.mark.parametrize("expression", KINDS)
def test_kinds(expression: str) -> None:
    assert str(value(expression, PARAMS).kind) == KINDS[expression]


def test_a_dim_on_both_sides_is_primed_in_store() -> None:
    assert block("param w: embed -> embed\nreturn w(x)").params["w"].stored == ("embed", "embed'")


def test_lookups_are_told_from_maps() -> None:
    found = block(
        "param a: vocab -> embed\nparam b: vocab -> embed\nreturn b(t) + sum[vocab](b.T(a(t)))"
    )
    assert [found.params[name].lookup for name in "ab"] == [True, True]
    assert not block("param c: embed -> embed\nreturn c(x)").params["c"].lookup


def test_a_mistake_is_reported_once() -> None:
    body = "y = unknown + 1\nz = softmax(y, over: embed) * y\nreturn rms_norm(z, over: ffn)"
    head = "block b(x: [batch, embed]) -> [embed] {\n"
    checked = check("a.fllm", f"{DIMS}{head}{body}\n}}")
    assert [found.code for found in checked.found] == ["E0205"]


def test_keyed_and_swapped_arguments_reach_their_inputs() -> None:
    text = """
block two(a: [batch], b: [seq]) -> [batch, seq] { return a * b }
block b(x: [batch], y: [seq]) -> [batch, seq] {
  sub two: two
  return two(b: y, a: x)
}
"""
    assert check("a.fllm", DIMS + text).found == ()


WORDS = re.compile(r'"[^"\n]*"|#[^\n]*|\w+(?:\.\d+)?|->|\S')
TEXTS = tuple(
    (SPECS / name).read_text(encoding="utf-8")
    for name in ("models/tiny_gpt.fllm", "models/llama3_8b.fllm", "recipes/lora.fllm")
)


@given(st.sampled_from(TEXTS), st.lists(st.tuples(st.integers(0), st.integers(0)), max_size=3))
def test_no_text_brings_it_down(text: str, swaps: list[tuple[int, int]]) -> None:
    """Words of a spec exchanged for other words of it."""
    for place, other in swaps:
        words = [m for m in WORDS.finditer(text) if not m.group().startswith("#")]
        old, new = words[place % len(words)], words[other % len(words)]
        text = text[: old.start()] + new.group() + text[old.end() :]
    spec, found, sources = load(str(SPECS / "models" / "changed.fllm"), text=text)
    render(found, sources)
    assert (spec is None) == any(each.severity == "error" for each in found)
    if spec is not None:
        verify(spec.program)
