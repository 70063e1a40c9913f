"""How a model's parameters lie in a checkpoint of another format: names, layouts, settings.

One mapping serves both ways. A foreign tensor is cut along its dims into factors; of each factor a
part holds a stretch; a stretch is made of dims of one of our tensors, outermost first. So each of
our tensors is a view of foreign ones, and each foreign tensor one of ours.

    ours = foreign, cut into factors, narrowed to stretches, split into dims, permuted, joined
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod

import msgspec

Indices = Mapping[str, int]


class Count(msgspec.Struct, frozen=True):
    """A number that depends on indices: the sum of factors times indices, and an offset."""

    factors: tuple[tuple[str, int], ...]
    offset: int = 0

    def at(self, indices: Indices) -> int:
        """The number at these indices."""
        return self.offset + sum(indices[name] * factor for name, factor in self.factors)


class Pattern(msgspec.Struct, frozen=True):
    """A name with numbers in it: `model.layers.{i}.mlp.up_proj.weight`."""

    parts: tuple[str | Count, ...]

    def at(self, indices: Indices) -> str:
        """The name at these indices."""
        return "".join(p if isinstance(p, str) else str(p.at(indices)) for p in self.parts)

    def __str__(self) -> str:
        return "".join(p if isinstance(p, str) else "{" + _words(p) + "}" for p in self.parts)


class Factor(msgspec.Struct, frozen=True):
    """A factor of a foreign dim: `total` long, of which `length` from `start` on are meant.

    They are made of the split dims with the numbers `dims`, outermost first.
    """

    total: int
    start: int
    length: int
    dims: tuple[int, ...]


class Part(msgspec.Struct, frozen=True):
    """One of our tensors, or a box of it, within a foreign one.

    `name` is ours and `shape` its whole shape. `lead` are positions along its first dims. Behind
    them stand the dims that lie in the foreign tensor: `split` are their sizes once dims are split,
    and `joined` how many of these each is made of. `axes` are the foreign dims, by factors.
    """

    name: Pattern
    shape: tuple[int, ...]
    lead: tuple[Count, ...]
    split: tuple[int, ...]
    joined: tuple[int, ...]
    axes: tuple[tuple[Factor, ...], ...]


class Loop(msgspec.Struct, frozen=True):
    """An index that counts to `count`.

    With a `period` it takes only numbers that leave one of `layers` when divided by it.
    """

    name: str
    count: int
    period: int = 0
    layers: tuple[int, ...] = ()

    def values(self) -> Iterator[int]:
        """The numbers that it takes, in order."""
        for number in range(self.count):
            if not self.period or number % self.period in self.layers:
                yield number


class Tensor(msgspec.Struct, frozen=True):
    """Foreign tensors of one kind, one for each value of the indices, and what lies in each.

    The first name is written. Under the others a tensor may be there too, with equal values.
    `loops` are the indices.
    """

    names: tuple[Pattern, ...]
    loops: tuple[Loop, ...]
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the foreign tensor."""
        return tuple(prod(factor.total for factor in axis) for axis in self.parts[0].axes)

    def places(self) -> Iterator[dict[str, int]]:
        """All values of the indices."""
        names = [loop.name for loop in self.loops]
        for values in product(*(loop.values() for loop in self.loops)):
            yield dict(zip(names, values, strict=True))


class Foreign(msgspec.Struct, frozen=True):
    """A whole mapping.

    `ignored` are patterns of names that are neither read nor written, with `*` for any text.
    `dims` are pairs of a dim and the key of `config.json` that holds its size, `values` pairs of a
    key and the JSON text of the value that it must have. Parts of keys are separated by dots.
    `sizes` are those of the dims.
    """

    name: str
    tensors: tuple[Tensor, ...]
    ignored: tuple[str, ...] = ()
    dims: tuple[tuple[str, str], ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()


def _words(count: Count) -> str:
    terms = [name if factor == 1 else f"{factor}*{name}" for name, factor in count.factors]
    if count.offset or not terms:
        terms.append(str(count.offset))
    return " + ".join(terms)
