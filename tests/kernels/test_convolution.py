"""Convolutions by torch are those of the evaluator, and so are their gradients."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fllmc.ir.ops import Conv, ConvInput, ConvWeight
from fllmc.kernels import torch_ops as kernels
from tests.kernels.meaning import Views, dtypes, hold, kind, mean, seeds

windows = st.tuples(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 6), st.integers(4, 7)
).filter(lambda window: window[2] < window[0])
"""Taps, stride, positions before, windows and positions of one dim."""


@settings(max_examples=15)
@given(
    dims=st.lists(windows, min_size=1, max_size=3),
    channels=st.tuples(*[st.integers(1, 3)] * 3),
    seed=seeds,
    dtype=dtypes,
)
def test_convolutions_and_their_gradients(dims, channels, seed, dtype) -> None:  # type: ignore[no-untyped-def]
    groups, inner, own = channels
    numbers = range(len(dims))
    taps, stride, before, to, along = zip(*dims, strict=True)
    sizes = {"batch": 2, "groups": groups, "inner": inner, "own": own}
    for name, counts in (("x", along), ("t", taps), ("y", to)):
        sizes |= {f"{name}{n}": counts[n] for n in numbers}
    names = [tuple(f"{name}{n}" for n in numbers) for name in ("x", "t", "y")]
    attrs: tuple[Any, ...] = (*names, ("inner",), stride, before)
    grouped: tuple[Any, ...] = (*attrs, ("groups",))
    x, w, y = (
        f"batch groups inner {' '.join(names[0])}",
        f"groups own inner {' '.join(names[1])}",
        f"batch groups own {' '.join(names[2])}",
    )
    views = Views(seed)
    tensors = [views.normal([sizes[n] for n in each.split()], dtype) for each in (x, w, y)]
    kinds = [(kind("f64", d), t) for d, t in zip((x, w, y), tensors, strict=True)]
    options = {"stride": stride, "before": before}
    cases = (
        (Conv(*attrs), (0, 1), 2, f"batch groups {' '.join(names[2])} own", kernels.conv),
        (
            ConvInput(*grouped),
            (2, 1),
            0,
            f"batch groups {' '.join(names[0])} inner",
            kernels.conv_input,
        ),
        (
            ConvWeight(*grouped),
            (0, 2),
            1,
            f"groups {' '.join(names[1])} inner own",
            kernels.conv_weight,
        ),
    )
    for op, places, result, natural, kernel in cases:
        (wanted,) = mean(op, sizes, [kinds[place] for place in places])
        order = natural.split()
        wanted = wanted.transpose([order.index(name) for name in (x, w, y)[result].split()])
        out = views.empty(tensors[result].shape, dtype)
        kernel(*(tensors[place] for place in places), **options, out=out)
        hold(out, wanted)
