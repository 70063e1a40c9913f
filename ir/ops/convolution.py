"""Convolutions along named dims, and their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fllmc.ir.ops.base import (
    Attrs,
    Env,
    distinct,
    joint_dtype,
    linear_in_one,
    merged,
    require,
)
from fllmc.ir.types import Dim, Type


class Conv(Attrs, frozen=True, tag="conv"):
    """Windows of x along some dims, each contracted with w: the deep-learning "convolution".

    y[.., t, ..] = sum over taps i, and over the `contract` dims, of
    x[.., t * stride + i - before, ..] * w[.., i, ..], where x is zero outside of its positions.
    `along`, `taps`, `to`, `stride` and `before` go together, one for each dim: of x, of w, of y.
    How many windows there are is the size of the `to` dim.

    Dims that x and w share and that are not contracted are groups. The result is laid out as x,
    each `along` replaced by its `to`, then w's own dims.
    """

    along: tuple[str, ...]
    taps: tuple[str, ...]
    to: tuple[str, ...]
    contract: tuple[str, ...] = ()
    stride: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    arity = 2

    @property
    def windows(self) -> tuple[tuple[str, str, str, int, int], ...]:
        """(along, taps, to, stride, before) of each dim."""
        given = (self.along, self.taps, self.to, self.stride, self.before)
        return tuple(zip(*given, strict=True))

    def check(self, env: Env) -> None:
        """What must hold of the attributes."""
        counts = {len(x) for x in (self.along, self.taps, self.to, self.stride, self.before)}
        require(counts <= {1, 2, 3}, f"{self.kind} along {self.along}")
        require(len(counts) == 1, f"{self.kind}: lists differ in length")
        require(all(n > 0 for n in self.stride), f"{self.kind}: strides {self.stride}")
        for _, taps, _, _, before in self.windows:
            inside = 0 <= before < env.sizes.size(taps)
            require(inside, f"{self.kind}: the first window has none of its {taps}")

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        x, w = operands
        self.check(env)
        open_axes = linear_in_one(operands, (0, 1))
        whole(self, x, self.along)
        whole(self, w, self.taps)
        for name in self.contract:
            require(name in x.names and name in w.names, f"{name} is not in both {x} and {w}")
            open_axes = merged(open_axes, x.axes_of(name))
        alike(self, x, w, (name for name in x.names if name in w.names))
        after = dict(zip(self.along, self.to, strict=True))
        dims = (
            Dim(after[dim.name]) if dim.name in after else dim
            for dim in x.dims
            if dim.name not in self.contract
        )
        own = (dim for dim in w.dims if dim.name not in (*x.names, *self.taps))
        return (Type(joint_dtype(operands), distinct((*dims, *own)), open_axes),)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (*self.along, *self.taps, *self.to)


class ConvInput(Conv, frozen=True, tag="conv_input"):
    """The transpose of conv in x: (d_y, w) -> d_x, laid out as d_y, then the contracted dims.

    What d_y and w share is summed over, but for the `groups`.
    """

    groups: tuple[str, ...] = ()

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        dy, w = operands
        self.check(env)
        open_axes = linear_in_one(operands, (0, 1))
        whole(self, dy, self.to)
        whole(self, w, self.taps)
        inner = (dim for dim in w.dims if dim.name in self.contract)
        own = [n for n in w.names if n in dy.names and n not in self.groups]
        alike(self, dy, w, (name for name in w.names if name in dy.names))
        for name in own:
            open_axes = merged(open_axes, dy.axes_of(name))
        before = dict(zip(self.to, self.along, strict=True))
        dims = (
            Dim(before[dim.name]) if dim.name in before else dim
            for dim in dy.dims
            if dim.name not in own
        )
        return (Type(joint_dtype(operands), distinct((*dims, *inner)), open_axes),)


class ConvWeight(Conv, frozen=True, tag="conv_weight"):
    """The transpose of conv in w: (x, d_y) -> d_w, laid out as groups, taps, contracted, own dims.

    What x and d_y share and that is no group is summed over.
    """

    groups: tuple[str, ...] = ()

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        x, dy = operands
        self.check(env)
        open_axes = linear_in_one(operands, (0, 1))
        whole(self, x, self.along)
        whole(self, dy, self.to)
        shared = [n for n in x.names if n in dy.names and n not in (*self.along, *self.to)]
        alike(self, x, dy, shared)
        for name in shared:
            if name not in self.groups:
                open_axes = merged(open_axes, x.axes_of(name))
        own = (dim for dim in dy.dims if dim.name not in (*x.names, *self.to))
        dims = (
            *(x.dim(name) for name in self.groups),
            *(Dim(name) for name in self.taps),
            *(x.dim(name) for name in self.contract),
            *own,
        )
        return (Type(joint_dtype(operands), distinct(dims), open_axes),)


Parts = tuple[tuple[str, ...], ...]
"""Dims of an operand by their part: the rest, groups, channels in or out, then each slid dim."""


def conv_parts(attrs: Conv, kinds: Sequence[Type]) -> tuple[Parts, Parts, Parts]:
    """The dims of the two operands by their parts, and those of the result in the same way.

    Of a weight the parts are groups, channels out, channels in, and each dim of taps.
    """
    a, b = (kind.names for kind in kinds[:2])
    contract = attrs.contract
    groups = getattr(attrs, "groups", None)
    if groups is None:
        groups = tuple(name for name in a if name in b and name not in contract)
    along, taps, to = (tuple((n,) for n in dims) for dims in (attrs.along, attrs.taps, attrs.to))
    slid = {*attrs.along, *attrs.to, *groups, *contract}
    if isinstance(attrs, ConvWeight):
        own = tuple(name for name in b if name not in (*a, *attrs.to))
    elif isinstance(attrs, ConvInput):
        own = tuple(name for name in b if name in a and name not in groups)
    else:
        own = tuple(name for name in b if name not in (*a, *attrs.taps))
    rest = tuple(name for name in a if name not in slid and name not in own)
    x = (rest, groups, contract, *along)
    w = (groups, own, contract, *taps)
    y = (rest, groups, own, *to)
    if isinstance(attrs, ConvWeight):
        return x, y, w
    return (y, w, x) if isinstance(attrs, ConvInput) else (x, w, y)


def whole(attrs: Conv, kind: Type, names: Sequence[str]) -> None:
    """Check that a type has these dims, divided by no axis."""
    for name in names:
        require(name in kind.names, f"{attrs.kind}: {kind} has no dim {name}")
        require(not kind.axes_of(name), f"{attrs.kind} needs {name} whole: {kind}")


def alike(attrs: Conv, a: Type, b: Type, names: Iterable[str]) -> None:
    """Check that two types have these dims on the same axes."""
    for name in names:
        same = a.axes_of(name) == b.axes_of(name)
        require(same, f"{attrs.kind}: {name} is placed differently: {a}, {b}")
