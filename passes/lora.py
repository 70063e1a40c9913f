"""Low-rank updates (Hu et al. 2021): y + alpha/rank * b(a(dropout(x))) for y = W x.

`a` maps the base's source dims to a dim of its own of size rank and begins normal with standard
deviation 1/sqrt(fan-in); `b` maps that to the target dims and begins at zero. A transposed use of
the base uses both transposed. A looked-up base has its `a` looked up, without dropout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.ops import Dot, Less, Random, Take, Where
from fllmc.ir.program import Init, Op, Parameter, Program
from fllmc.ir.settings import Lora
from fllmc.ir.types import tensor
from fllmc.passes.errors import MixedUse, NoSamples
from fllmc.passes.lora_uses import Arrow

SEED, SAMPLES, LAYER = "seed", "samples", "layer"
"""Names of the inputs that dropout draws its random numbers by."""

TRAINING = "training"
"""The host input that turns dropout on: 1 in the entry `train`, 0 in all others."""

PARTS = ("lora_a", "lora_b")


class Update(msgspec.Struct, frozen=True):
    """A low-rank update: its directive, the base as a map, and the dim of size rank."""

    lora: Lora
    base: Parameter
    arrow: Arrow
    rank_dim: str

    @property
    def factor(self) -> float:
        """alpha/rank, by which the product of both parts is multiplied."""
        return self.lora.alpha / self.lora.rank

    def parameter(self, part: str, program: Program) -> Parameter:
        """`lora_a` or `lora_b`."""
        arrow, rank = self.arrow, (self.rank_dim,)
        inner = (*arrow.source, *rank) if part == "lora_a" else (*rank, *arrow.target)
        own = (*arrow.batch, *inner)
        outer = [n for n in self.base.type.names if n not in (*arrow.batch, *arrow.source)]
        outer = [name for name in outer if name not in arrow.target]
        fan_in = math.prod(program.sizes.size(name) for name in arrow.source)
        init = Init("normal", 1 / math.sqrt(fan_in)) if part == "lora_a" else Init("zeros")
        return msgspec.structs.replace(
            self.base,
            name=f"{self.base.name}.{part}",
            type=tensor(self.base.type.dtype, *outer, *own),
            init=init,
            trainable=True,
            span=self.lora.span,
            takes=len(arrow.source) if part == "lora_a" else 1,
            updates=self.base.name,
            factor=self.factor,
        )

    def parts(self, used: Arrow) -> tuple[str, str]:
        """The part that is applied first for such a use of the base, and the other one."""
        sides = set(self.arrow.source), set(self.arrow.target)
        given = set(used.source), set(used.target)
        if set(used.batch) == set(self.arrow.batch):
            if given == sides:
                return PARTS
            if given == (sides[1], sides[0]):
                return (PARTS[1], PARTS[0])
        source, over = ", ".join(self.arrow.source), ", ".join(used.source)
        raise DiagnosticError(MixedUse(self.lora.span, self.base.name, source, over))

    def needs_random(self, op: Op) -> bool:
        """Whether this use of the base has dropout."""
        return self.lora.dropout > 0.0 and not isinstance(op.attrs, Take)


class Draw(msgspec.Struct, frozen=True):
    """What random numbers are drawn by: values of the function, and the place of the use.

    `batch` is the dim of the samples; `layer` is -1 outside of stacks.
    """

    seed: int
    training: int
    samples: int
    layer: int
    place: int
    batch: str


def dropped_out(b: Builder, x: int, update: Update, draw: Draw) -> int:
    """In training, x with a fraction of its elements zeroed, the others scaled to keep the mean."""
    kind = b.types[x]
    if draw.batch not in kind.names:
        raise DiagnosticError(NoSamples(update.lora.span, update.base.name))
    rate = b.mul(b.constant(update.lora.dropout), draw.training)
    dims = (kind.dim(draw.batch), *kind.without((draw.batch,)).dims)
    drawn_by = (draw.seed, draw.samples) + ((draw.layer,) if draw.layer >= 0 else ())
    noise = b.one(Random(draw.place, dims), *drawn_by)
    dropped = b.one(Less(), noise, rate)
    one = b.constant(1.0)
    scaled = b.mul(x, b.div(one, b.sub(one, rate)))
    return b.one(Where(), dropped, b.constant(0.0), scaled)


def updated(
    b: Builder,
    update: Update,
    op: Op,
    used: Arrow,
    x: int,
    weights: Mapping[str, int],
    draw: Draw | None,
    dtype: str,
) -> int:
    """What the update adds to the result of `op` on x; `weights` are its parts' values.

    It is computed in `dtype`, as the result is.
    """
    first, second = update.parts(used)
    where = b.path or update.base.name
    b.path = f"{where}.{first}"
    if isinstance(op.attrs, Take):
        inner = b.cast(b.one(op.attrs, weights[first], x), dtype)
    else:
        given = x if draw is None else dropped_out(b, x, update, draw)
        inner = b.one(Dot(used.source), given, b.cast(weights[first], dtype))
    b.path = f"{where}.{second}"
    outer = b.one(Dot((update.rank_dim,)), inner, b.cast(weights[second], dtype))
    return b.mul(outer, b.constant(update.factor))
