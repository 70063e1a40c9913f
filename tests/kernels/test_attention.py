"""Attention equals its meaning on every path, layout and precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fllmc.ir.ops import Attend, AttendGrad
from fllmc.kernels import attention, torch_ops
from tests.kernels.meaning import DTYPES, Views, dtypes, hold, kind, mean, seeds

Q, K, LSE = "batch heads seq dim", "batch groups seq dim", "batch heads seq"
SCALE = 0.3
cases = st.tuples(
    st.integers(1, 3), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)]),
    st.sampled_from([1, 2, 7, 33, 70]), st.sampled_from([1, 2, 6, 16]),
)  # fmt: skip


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float = SCALE) -> Tensor:
    """The textbook's formula in the operands' own dtype; bottom right aligned."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = q @ k.mT * scale
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(dim=-1) @ v


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@given(cases, dtypes, st.booleans(), st.sampled_from(["blocked", "plain", "chunked"]), seeds)
def test_attend_and_its_gradient(
    case: tuple[int, tuple[int, int], int, int],
    dtype: torch.dtype,
    causal: bool,
    path: str,
    seed: int,
) -> None:
    batch, (heads, groups), seq, dim = case
    views = Views(seed)
    q, d_out = (views.normal((batch, heads, seq, dim), dtype) for _ in range(2))
    k, v = (views.normal((batch, groups, seq, dim), dtype) for _ in range(2))
    o, dq = views.empty(q.shape, dtype), views.empty(q.shape, dtype)
    dk, dv = views.empty(k.shape, dtype), views.empty(k.shape, dtype)
    lse = views.empty(q.shape[:3], wide(dtype))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        if path != "blocked":
            patch.setattr(attention, "_blocked", lambda *given: False)
        if path == "chunked":
            patch.setattr(attention, "_SCORES", 3 * batch * heads * seq)
        torch_ops.attend(q, k, v, scale=SCALE, causal=causal, out=(o, lse))
        torch_ops.attend_grad(q, k, v, o, lse, d_out, scale=SCALE, causal=causal, out=(dq, dk, dv))

    names = ("seq", "heads", "groups", "dim", SCALE, "causal" if causal else "none")
    sizes = {"batch": batch, "heads": heads, "groups": groups, "seq": seq, "dim": dim}
    given_kinds = [kind("f64", dims) for dims in (Q, K, K)]
    wanted = mean(Attend(*names), sizes, list(zip(given_kinds, (q, k, v), strict=True)))
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    reference = plain(*leaves, causal=causal)
    hold(o, wanted[0], reference)
    scores = plain_lse(q, k, causal)
    hold(lse, wanted[1], scores)

    kinds = [*given_kinds, kind("f64", Q), kind("f64", LSE), kind("f64", Q)]
    arrays = (q, k, v, torch.from_numpy(wanted[0]), torch.from_numpy(wanted[1]), d_out)
    wanted = mean(AttendGrad(*names), sizes, list(zip(kinds, arrays, strict=True)))
    references = torch.autograd.grad(reference, leaves, d_out)
    # exp(scores - lse) carries the rounding of lse; dP - D is rounding alone where one key takes
    # all the weight, which autograd's formula hides.
    products = d_out.double().abs() @ v.repeat_interleave(heads // groups, 1).double().abs().mT
    terms = 1.0 + float(lse.abs().max())
    if seq == 1 or dtype == torch.float32:
        terms *= float(products.max()) * (heads // groups)
    for found, exact, own in zip((dq, dk, dv), wanted, references, strict=True):
        hold(found, exact, own, terms)


def plain_lse(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * SCALE
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.logsumexp(dim=-1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("keys", [48, 80])
def test_gradient_is_autograds(groups: int, causal: bool, keys: int) -> None:
    """In float64 to 1e-12, also with more keys than queries."""
    views = Views(groups)
    q, d_out = (views.normal((2, 4, 48, 16), torch.float64) for _ in range(2))
    k, v = (views.normal((2, groups, keys, 16), torch.float64) for _ in range(2))
    out = [views.empty(x.shape, torch.float64) for x in (q, q, k, v)]
    lse = views.empty((2, 4, 48), torch.float64)
    torch_ops.attend(q, k, v, scale=0.25, causal=causal, out=(out[0], lse))
    torch_ops.attend_grad(
        q, k, v, out[0], lse, d_out, scale=0.25, causal=causal, out=(out[1], out[2], out[3])
    )
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    result = plain(*leaves, causal=causal, scale=0.25)
    wanted = [result, *torch.autograd.grad(result, leaves, d_out)]
    for found, exact in zip(out, wanted, strict=True):
        hold(found, exact.detach().numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_again(dtype: torch.dtype) -> None:
    views = Views(1)
    q, d_out = (views.normal((2, 4, 65, 8), dtype) for _ in range(2))
    k, v = (views.normal((2, 2, 65, 8), dtype) for _ in range(2))
    runs: list[list[Tensor]] = []
    for _ in range(2):
        out = [torch.empty(x.shape, dtype=dtype) for x in (q, q, k, v)]
        lse = torch.empty(2, 4, 65, dtype=wide(dtype))
        torch_ops.attend(q, k, v, scale=SCALE, causal=True, out=(out[0], lse))
        torch_ops.attend_grad(
            q, k, v, out[0], lse, d_out, scale=SCALE, causal=True, out=(out[1], out[2], out[3])
        )
        runs.append([*out, lse])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_no_samples() -> None:
    empty = torch.empty(0, 2, 4, 8)
    torch_ops.attend(empty, empty, empty, scale=1.0, causal=True, out=(empty, torch.empty(0, 2, 4)))
