"""Mixtures of experts: the choice of experts, rows in the order of experts, and their products.

Tokens stand in [lead..., along, rest...] and choices, indices of the dim of experts, in [lead...,
along, choices]. Expert layout has the chosen tokens of each sequence (each position of `lead`) by
expert and, of one expert, in the order of tokens and then of choices. It comes in two forms:

- dropless, [lead..., rows, rest...]: one run of rows for each expert, one behind the other. With
  `rows` G times as many as choices, the experts fall into G equal groups; the rows of a group stand
  at the beginning of its stretch of `rows`, and the others are zeros. So each rank that holds a
  group has room for all choices, whatever is chosen. Where axes divide the tokens of a sequence,
  as a context axis does, they divide `rows` outermost: each part has the rows of its own tokens.
- with a capacity, [lead..., experts, slots, rest...]: what finds no slot is dropped (Fedus et al.
  2021, Switch Transformers, section 2.2, with a sequence as the group).
"""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.ir.ops.base import Attrs, Env, distinct, joint_dtype, linear_in_one, merged, require
from fllmc.ir.ops.contraction import index_operand
from fllmc.ir.types import Dim, Sizes, Type, bare_axes


class TopK(Attrs, frozen=True, tag="top_k"):
    """The largest along `dim`: x[..., dim] -> (values[..., to], index of dim [..., to]).

    They come in falling order; of equal ones, the one at the lower index is the larger.
    """

    dim: str
    to: str

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (x,) = operands
        linear_in_one(operands, ())
        require(self.dim in x.names, f"{x} has no dim {self.dim}")
        require(not x.axes_of(self.dim), f"top_k needs {self.dim} whole: {x}")
        wanted, given = env.sizes.size(self.to), env.sizes.size(self.dim)
        require(wanted <= given, f"{wanted} of {given} can't be chosen")
        dims = distinct((*x.without((self.dim,)).dims, Dim(self.to)))
        return (Type(x.dtype, dims), Type("i64", dims, index=self.dim))

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.dim, self.to)


def lead_of(index: Type, along: str, choices: str) -> tuple[Dim, ...]:
    """The dims of sequences of a tensor of choices, [lead..., along, choices]."""
    require(index.names[-2:] == (along, choices), f"{index} does not end in {along}, {choices}")
    require(not index.axes_of(choices), f"experts need {choices} whole: {index}")
    return index.dims[:-2]


def groups_of(sizes: Sizes, rows: str, along: str, choices: str, experts: str) -> int:
    """Into how many groups of experts the rows fall."""
    room = sizes.size(along) * sizes.size(choices)
    found, left = divmod(sizes.size(rows), room)
    require(found > 0 and not left, f"{rows}={sizes.size(rows)} is no multiple of {room}")
    require(sizes.size(experts) % found == 0, f"{experts} do not fall into {found} groups")
    return found


class Tally(Attrs, frozen=True, tag="tally"):
    """How often each expert is chosen: index[lead..., along, choices] -> i64[lead..., experts].

    Dividing `along` leaves a partial sum.
    """

    along: str
    choices: str
    experts: Dim

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (index,) = operands
        index_operand(index, self.experts.name)
        lead = lead_of(index, self.along, self.choices)
        parts = merged(index.axes_of(self.along))
        return (Type("i64", distinct((*lead, self.experts)), parts),)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.choices,)


class Dispatch(Attrs, frozen=True, tag="dispatch"):
    """Tokens to expert layout: (value[lead..., along, rest...], index) -> [lead..., *to, rest...].

    A value may have `choices` behind `along`: then each choice brings its own row. `to` is (rows,)
    or (experts, slots); a rank makes its part of dims that axes divide.
    """

    along: str
    choices: str
    to: tuple[Dim, ...]
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        value, index = operands
        lead = lead_of(index, self.along, self.choices)
        room(self.to, index, self.along, self.choices, env)
        open_axes = linear_in_one(operands, (0,))
        given = tokens_of(value, index, self.along, self.choices)
        rest = value.dims[len(given) :]
        return (Type(value.dtype, distinct((*lead, *self.to, *rest)), open_axes),)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return whole_of(self.along, self.choices, tuple(dim.name for dim in self.to))


class Combine(Attrs, frozen=True, tag="combine"):
    """The transpose of dispatch: (rows[lead..., *of, rest...], index) -> [lead..., along, rest...].

    A token's rows are added up, or with `apart` stand in a dim `choices` behind `along`. What was
    dropped is zero. Dividing a dim of `of` leaves a partial sum, but for the parts of sequences.
    """

    along: str
    choices: str
    of: tuple[str, ...]
    apart: bool = False
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        rows, index = operands
        lead = lead_of(index, self.along, self.choices)
        stop = len(lead) + len(self.of)
        fits = rows.dims[: len(lead)] == lead and rows.names[len(lead) : stop] == self.of
        require(fits, f"{rows} does not begin with {index.names[:-2]} and {self.of}")
        of = rows.dims[len(lead) : stop]
        room(of, index, self.along, self.choices, env)
        open_axes = linear_in_one(operands, (0,))
        parts = len(index.axes_of(self.along))
        divided = (*of[0].axes[parts:], *(axis for dim in of[1:] for axis in dim.axes))
        tokens = index.dims if self.apart else index.dims[:-1]
        dims = distinct((*tokens, *rows.dims[stop:]))
        return (Type(rows.dtype, dims, merged(open_axes, divided)),)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return whole_of(self.along, self.choices, self.of)


def whole_of(along: str, choices: str, of: tuple[str, ...]) -> tuple[str, ...]:
    """What dispatch and combine need whole: with slots, it is the sequence that fills them."""
    return (choices,) if len(of) == 1 else (along, choices, *of[1:])


def tokens_of(value: Type, index: Type, along: str, choices: str) -> tuple[Dim, ...]:
    """The dims with which a value in token layout begins: those of index, maybe less `choices`."""
    tokens = index.dims if choices in value.names else index.dims[:-1]
    require(value.dims[: len(tokens)] == tokens, f"{value} does not begin as {index}")
    return tokens


def own_axes(rows: Dim, index: Type, along: str) -> tuple[str, ...]:
    """The axes that divide rows by groups of experts, inside of those of parts of the sequence."""
    parts = bare_axes(index.axes_of(along))
    require(rows.axes[: len(parts)] == parts, f"{rows} is not in the parts of {index}")
    return rows.axes[len(parts) :]


def room(of: Sequence[Dim], index: Type, along: str, choices: str, env: Env) -> None:
    """Check the dims of expert layout: (rows,) or (experts, slots)."""
    require(bool(index.index), f"{index} does not hold choices")
    if len(of) == 1:
        groups = groups_of(env.sizes, of[0].name, along, choices, index.index)
        extent = env.sizes.mesh.extent(own_axes(of[0], index, along))
        require(groups % extent == 0, f"{of[0]}: {groups} groups on {extent} ranks")
        return
    require(len(of) == 2 and of[0].name == index.index, f"{index} goes to (rows) or its slots")
    require(not of[1].axes, f"experts need {of[1].name} whole")


class Grouped(Attrs, frozen=True):
    """Base of the products over runs of rows in the dropless form, as the choices order them.

    Each rank holds the rows of one group, that of its experts.
    """

    experts: str
    rows: str
    along: str
    choices: str
    arity = 3

    def runs(self, rows: Type, index: Type, env: Env) -> tuple[tuple[Dim, ...], Dim]:
        """The dims of sequences, and the experts on their axes, after checking that both fit."""
        index_operand(index, self.experts)
        lead = lead_of(index, self.along, self.choices)
        fits = rows.dims[: len(lead)] == lead and rows.names[len(lead) :][:1] == (self.rows,)
        require(fits, f"{rows} does not begin with {index.names[:-2]} and {self.rows}")
        own = own_axes(rows.dim(self.rows), index, self.along)
        groups = groups_of(env.sizes, self.rows, self.along, self.choices, self.experts)
        fits = groups == env.sizes.mesh.extent(own)
        require(fits, f"{rows}: {groups} groups of experts, and not one on each rank")
        return lead, Dim(self.experts, own)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.choices,)


class GroupedDot(Grouped, frozen=True, tag="grouped_dot"):
    """Each row times its expert's matrix: ([lead..., rows, a...], [experts, ...], index).

    The matrix has the dims a (`contract`) and the result's own, either first. Rows that no choice
    has filled give zero.
    """

    contract: tuple[str, ...]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        rows, weight, index = operands
        lead, experts = self.runs(rows, index, env)
        require(weight.dims[:1] == (experts,), f"{weight} does not begin with {experts}")
        inner = rows.dims[len(lead) + 1 :]
        require(tuple(dim.name for dim in inner) == self.contract, f"{rows}: not {self.contract}")
        own = weight.dims[1:]
        if own[: len(inner)] == inner:
            own = own[len(inner) :]
        else:
            fits = own[len(own) - len(inner) :] == inner
            require(fits, f"{self.contract} are not a run of {weight}")
            own = own[: len(own) - len(inner)]
        divided = tuple(axis for dim in inner for axis in dim.axes)
        open_axes = merged(linear_in_one(operands, (0, 1)), divided)
        dims = distinct((*rows.dims[: len(lead) + 1], *own))
        return (Type(joint_dtype(operands[:2]), dims, open_axes),)


class GroupedOuter(Grouped, frozen=True, tag="grouped_outer"):
    """The transpose of grouped_dot in its matrices: ([lead..., rows, a...], [lead..., rows, b...],
    index) -> [experts, a..., b...], for each expert the sum over its rows of the outer products.

    Dividing a dim of `lead` or the sequence leaves a partial sum.
    """

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        a, b, index = operands
        lead, experts = self.runs(a, index, env)
        self.runs(b, index, env)
        open_axes = linear_in_one(operands, (0, 1))
        divided = tuple(axis for dim in (*lead, index.dims[-2]) for axis in dim.axes)
        own = (*a.dims[len(lead) + 1 :], *b.dims[len(lead) + 1 :])
        dims = distinct((experts, *own))
        return (Type(joint_dtype(operands[:2]), dims, merged(open_axes, divided)),)


class ExchangeRows(Attrs, frozen=True, tag="exchange_rows"):
    """Rows to the ranks of their experts, or `back`: (rows, index) -> rows, over `axes`.

    At their tokens rows stand packed, [batch@axes, ..., packed, rest...], as `dispatch` puts them
    into one group; at their experts they stand in a dim of groups, [batch, ..., rows@axes,
    rest...]. Only rows that choices fill are moved, so how many is known at run time alone: the
    index has the choices of all tokens along `axes`, and no counts need be exchanged beside. The
    first dim of the index is the one whose axes move. Rows left over are zeros.
    """

    rows: str
    packed: str
    along: str
    choices: str
    axes: tuple[str, ...]
    back: bool = False
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        given, index = operands
        require(bool(index.index), f"{index} does not hold choices")
        batch, *others = lead_of(index, self.along, self.choices)
        parts = bare_axes(index.axes_of(self.along))
        for name, wanted in ((self.rows, env.sizes.mesh.extent(self.axes)), (self.packed, 1)):
            found = groups_of(env.sizes, name, self.along, self.choices, index.index)
            require(found == wanted, f"{name} has {found} groups of experts, not {wanted}")
        near = (Dim(batch.name, (*batch.axes, *self.axes)), *others, Dim(self.packed, parts))
        far = (batch, *others, Dim(self.rows, (*parts, *self.axes)))
        source, target = (far, near) if self.back else (near, far)
        require(given.dims[: len(source)] == source, f"{given} does not begin as {index} says")
        dims = distinct((*target, *given.dims[len(source) :]))
        return (Type(given.dtype, dims, linear_in_one(operands, (0,))),)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.choices,)
