"""Fixes: what is applied is held by another check, and what is only guessed is left alone."""

from __future__ import annotations

import pytest

from fllmc.frontend import load
from fllmc.frontend.fixes import fixed, fixes_of
from fllmc.ir.diagnostics import Diagnostic

GOOD = """fllm 1

import "library/transformer.fllm" (norm)

dims {
  batch
  seq
  embed = 16
  wide = 32
  heads = 4
  head_dim = embed / heads
}

block b(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param up: embed -> wide
  param down: wide -> embed
  param wq: embed -> (heads, head_dim)
  sub n: norm

  h = silu(up(n(x))) * 2
  a = rms_norm(wq.T(wq(x)), over: embed, eps: 1e-5)
  return down(h) + a
}

data text {
  source: "corpus/*.txt"
  batch: 8
}
"""

MISTAKES = {
    "E0101 sign": ("param up: embed", "param up embed"),
    "E0101 other sign": ("batch: 8", "batch = 8"),
    "E0102": ("param up", "parm up"),
    "E0103": ("silu(up(n(x)))", "silu(up(n(x))"),
    "E0103 brace": ("+ a\n}", "+ a\n"),
    "E0104": ("down(h)", "down(h))"),
    "E0105": ("* 2", "× 2"),
    "E0105 semicolon": ("return down(h) + a", "return down(h) + a;"),
    "E0106": ("*.txt\"", "*.txt"),
    "E0110": ("fllm 1\n\n", ""),
    "E0111": ("fllm 1", "fllm 3"),
    "E0201": ("transformer.fllm", "transfomer.fllm"),
    "E0203": ("(norm)", "(nrom)"),
    "E0205": ("down(h)", "down(hh)"),
    "E0205 function": ("silu", "sliu"),
    "E0206": ("param up: embed", "param up: embd"),
    "E0206 no other": ("  wide = 32\n", ""),
    "E0207": ("sub n: norm", "sub n: norms"),
    "E0211": ("wq.T", "wq.transpose"),
    "E0212 use": ("wq.T(wq(x))", "wq(wq(x))"),
    "E0212 declaration": ("param down: wide -> embed", "param down: embed -> wide"),
    "E0217": ("eps:", "esp:"),
    "W0201": ("(norm)", "(norm, layer)"),
}  # fmt: skip


def codes(found: tuple[Diagnostic, ...]) -> list[str]:
    return sorted({each.code for each in found})


def test_the_good_spec_is_good() -> None:
    assert fixed("a.fllm", GOOD).left == ()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_put_right_and_nothing_else_is_touched(mistake: str) -> None:
    right, wrong = MISTAKES[mistake]
    assert right in GOOD
    text = GOOD.replace(right, wrong, 1)
    _, before, _ = load("a.fllm", text=text, needs_run=False)
    assert mistake[:5] in codes(before)

    result = fixed("a.fllm", text)
    assert codes(result.left) == []
    assert result.applied
    after = result.text.split()
    assert sum(word not in GOOD.split() for word in after) <= 2


def test_many_mistakes_are_put_right_together() -> None:
    text = GOOD
    for mistake in ("E0102", "E0105", "E0110", "E0205", "E0217", "W0201"):
        text = text.replace(*MISTAKES[mistake], 1)
    result = fixed("a.fllm", text)
    assert result.text == GOOD
    assert result.left == ()


def test_a_fix_that_mends_nothing_is_not_kept() -> None:
    """`yy` is near `yyy`, which is no value; writing it is no better."""
    text = GOOD.replace("return down(h)", "return down(siluu)").replace("  wide = 32", "  wide = 0")
    result = fixed("a.fllm", text)
    assert result.text == text and result.applied == ()
    assert codes(result.left) == ["E0205"]


def test_two_errors_at_one_dim_need_one_declaration() -> None:
    result = fixed("a.fllm", GOOD.replace("  wide = 32\n", ""))
    assert "head_dim = embed / heads\n  wide\n}" in result.text
    assert len(result.applied) == 1


def test_a_comment_is_never_lost() -> None:
    text = GOOD.replace("(norm)", "(\n  norm,  # keep me\n  layer\n)")
    assert "# keep me" in fixed("a.fllm", text).text


def test_an_edit_says_what_it_replaces() -> None:
    _, found, _ = load("a.fllm", text=GOOD.replace("silu", "sliu"), needs_run=False)
    (first,) = found
    assert fixes_of(first, GOOD) == ()
