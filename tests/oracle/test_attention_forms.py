"""Attention in all its forms: evaluator, JAX and compiled plan agree, gradients included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.flops import op_flops, seen_pairs
from fllmc.ir.program import Program
from fllmc.ir.types import Sizes, Type, indices, tensor
from fllmc.kernels import attention as kernels
from tests.codegen import running
from tests.codegen.running import arguments, check, hand_made, planned

jax = pytest.importorskip("jax")

from fllmc.codegen.jax_target import jax_function  # noqa: E402


@pytest.fixture(autouse=True)
def wide_jax() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@st.composite
def attentions(draw: st.DrawFn) -> Program:
    """Attention and its gradient with any of its attributes, of values in f64."""
    queries = draw(st.integers(1, 9))
    crossing = draw(st.booleans())
    more = draw(st.integers(0, 5)) if crossing else 0
    keys, first = queries + more, draw(st.integers(0, more))
    heads, kv_heads = draw(st.sampled_from([(2, 2), (4, 2), (3, 1)]))
    far, start = queries + keys + 3, first + queries + 1
    dims = {
        "batch": 2, "seq": queries, "source": keys, "heads": heads, "kv_heads": kv_heads,
        "width": 4, "wide": 6, "far": far,
    }  # fmt: skip
    over, wide = ("source" if crossing else ""), draw(st.sampled_from(["", "wide"]))
    groups = "heads" if heads == kv_heads else "kv_heads"
    attrs = {
        "mask": draw(st.sampled_from(["causal", "none"])),
        "window": draw(st.integers(0, 5)),
        "cap": draw(st.sampled_from([0.0, 1.5])),
        "sinks": draw(st.booleans()),
        "bias": draw(st.sampled_from(["", "far"])),
    }
    attrs["documents"] = attrs["mask"] == "causal" and draw(st.booleans())
    attrs |= {"keys": over, "first": first, "value": wide, "origin": start if attrs["bias"] else 0}
    b = Builder("main", Sizes(dims))
    mine = ("batch", "seq", "heads")
    theirs = ("batch", over or "seq", groups)
    kinds = {
        "q": (*mine, "width"), "k": (*theirs, "width"), "v": (*theirs, wide or "width"),
        "sinks": ("heads",) * attrs["sinks"], "bias": ("heads", "far") if attrs["bias"] else (),
    }  # fmt: skip
    values = [b.input(n, tensor("f64", *names), "data") for n, names in kinds.items() if names]
    d = b.input("d", tensor("f64", *mine, wide or "width"), "data")
    kind = indices(over or "seq", "batch", "seq")
    starts = [b.input("starts", kind, "data")] if attrs["documents"] else []
    names = ("seq", "heads", groups, "width", 0.4)
    out, lse = b.emit(ops.Attend(*names, **attrs), *values, *starts)
    grads = b.emit(ops.AttendGrad(*names, **attrs), *values, out, lse, d, *starts)
    named = [f"d_{name}" for name, dims in kinds.items() if dims]
    return hand_made(b, [out, lse, *grads], ["out", "lse", *named])


@pytest.fixture(autouse=True)
def own_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query's document starts no later than where the query can stand."""
    plain = running.drawn

    def drawn(name: str, kind: Type, program: Program) -> Any:
        found = plain(name, kind, program)
        return np.minimum(found, np.arange(found.shape[-1])) if name == "starts" else found

    monkeypatch.setattr(running, "drawn", drawn)


@given(attentions(), st.sampled_from([1 << 26, 40]))
@settings(max_examples=25)
def test_every_form_is_computed_as_it_is_defined(program: Program, room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_SCORES", room)
        patch.setattr(kernels, "_LEAST", 2)
        check(planned(program))


@pytest.mark.long
@given(attentions())
@settings(max_examples=60)
def test_every_form_is_what_jax_says(program: Program) -> None:
    agree_with_jax(program)


@given(attentions())
@settings(max_examples=3)
def test_some_forms_are_what_jax_says(program: Program) -> None:
    agree_with_jax(program)


def agree_with_jax(program: Program) -> None:
    values = arguments(program, "main")
    by_jax = jax.jit(jax_function(program, "main"))(values)
    for name, value in evaluate(program, "main", values).items():
        np.testing.assert_allclose(by_jax[name], value, rtol=0, atol=1e-12, err_msg=name)


@given(attentions())
@settings(max_examples=25)
def test_flops_count_the_pairs_that_are_seen(program: Program) -> None:
    main = program.function("main")
    op = next(op for op in main.ops if isinstance(op.attrs, ops.Attend))
    attrs, sizes = op.attrs, program.sizes
    assert isinstance(attrs, ops.Attend)
    queries, keys = sizes.size("seq"), sizes.size(attrs.over)
    far = np.arange(keys) - np.arange(attrs.first, attrs.first + queries)[:, None]
    seen = far <= 0 if attrs.mask == "causal" else np.ones(far.shape, bool)
    if attrs.window:
        pairs = int((seen & (abs(far) < attrs.window)).sum())
    else:
        pairs = queries * keys // 2 if attrs.mask == "causal" else queries * keys
    assert seen_pairs(attrs, queries, keys) == pairs
    each = 2 * (sizes.size(attrs.dim) + sizes.size(attrs.width))
    assert op_flops(main, op, sizes) == 2 * sizes.size("heads") * each * pairs
