"""The syntax tree of one `.fllm` file: what was written, nothing resolved.

Every node is a frozen value with its `span`. Trees are at most `machine.MAX_DEPTH` deep, so
recursive functions over them are safe.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from fllmc.ir.span import Span


class Node(Struct, frozen=True):
    """Anything with a place."""

    span: Span


class Name(Node, frozen=True):
    """A name where it is declared, or where a dim, axis, block or section is meant."""

    text: str

    def __str__(self) -> str:
        return self.text


# Expressions: values of equations, sizes of dims, defaults, and values of record fields.


class Number(Node, frozen=True):
    """`128_256`, `1e-5`; an int when written without point and exponent.

    Negative only as a record value (`floor: -1`); in equations the sign is a `Unary`.
    """

    value: int | float
    text: str


class String(Node, frozen=True):
    """`"data/*.bin"`, with the escapes already replaced."""

    value: str


class Boolean(Node, frozen=True):
    """`true` or `false`."""

    value: bool


class Ref(Node, frozen=True):
    """The use of a name: a value, a parameter, a sub-block, a function or a plain word."""

    name: str


class Attribute(Node, frozen=True):
    """`value.name`, as in `embedding.T`."""

    value: Expr
    name: Name


class Argument(Node, frozen=True):
    """`value`, or `key: value`."""

    key: Name | None
    value: Expr


class Call(Node, frozen=True):
    """`function(arguments)`, or `function[dims](arguments)` such as `dot[embed](a, b)`."""

    function: Expr
    dims: tuple[Name, ...]
    arguments: tuple[Argument, ...]


class RenamePair(Node, frozen=True):
    """`old = new` in a renaming."""

    old: Name
    new: Name


class SplitPair(Node, frozen=True):
    """`old = (a, b)` in a renaming: a dim as two, the last innermost."""

    old: Name
    new: tuple[Name, ...]


class JoinPair(Node, frozen=True):
    """`(a, b) = new` in a renaming: two dims as one, the last innermost."""

    old: tuple[Name, ...]
    new: Name


class Rename(Node, frozen=True):
    """`value{old = new, ...}`: the same numbers with dims renamed, split or joined."""

    value: Expr
    pairs: tuple[RenamePair | SplitPair | JoinPair, ...]


class Unary(Node, frozen=True):
    """`-value`."""

    op: Literal["-"]
    value: Expr


class Binary(Node, frozen=True):
    """`left op right`; `^` is power and associates to the right."""

    op: Literal["+", "-", "*", "/", "%", "^"]
    left: Expr
    right: Expr


class Quantity(Node, frozen=True):
    """A number with a unit: bytes (`40GiB`) or tokens (`4M tokens`), in the unit's base."""

    value: int | float
    unit: str
    text: str


class Require(Node, frozen=True):
    """`require left op right`: a fact about sizes that must hold."""

    left: Expr
    op: str
    right: Expr


class Tuple(Node, frozen=True):
    """`(a, b)`; two items or more."""

    items: tuple[Expr, ...]


class List(Node, frozen=True):
    """`[a, b]`."""

    items: tuple[Expr, ...]


class Star(Node, frozen=True):
    """`*` in a selector: any one segment; alone or leading, any path."""


class Index(Node, frozen=True):
    """A layer number in a selector."""

    value: int


class Alternatives(Node, frozen=True):
    """`{wq, wk}` in a selector."""

    options: tuple[Name | Index, ...]


class Selector(Node, frozen=True):
    """A dotted path with wild cards: `body.*.attn.{wq, wk}`.

    As a record value, a path of one plain name is a `Ref`; in directives always a `Selector`.
    """

    segments: tuple[Name | Star | Index | Alternatives, ...]

    def __str__(self) -> str:
        return ".".join(map(_segment, self.segments))


Expr = (
    Number | String | Boolean | Ref | Attribute | Call | Rename | Unary | Binary | Tuple | List
    | Selector | Quantity
)  # fmt: skip


class TensorType(Node, frozen=True):
    """`[batch, seq]`, or with `index` set `vocab[batch, seq]`: integers that index that dim."""

    dims: tuple[Name, ...]
    index: Name | None


class Arrow(Node, frozen=True):
    """`source -> target`: a linear map."""

    source: tuple[Name, ...]
    target: tuple[Name, ...]


# Items of a body.


class Dim(Node, frozen=True):
    """`name = size`; without a size, bound elsewhere."""

    name: Name
    size: Expr | None


class Input(Node, frozen=True):
    """`name: type` in the head of a block."""

    name: Name
    type: TensorType


class Param(Node, frozen=True):
    """`param name: shape = init`."""

    name: Name
    shape: Arrow | TensorType
    init: Expr | None


class BlockState(Param, frozen=True):
    """`state name: shape = init` in a block: what an equation steps, and no gradient."""


class Sub(Node, frozen=True):
    """`sub name: block`."""

    name: Name
    block: Name


class Layer(Node, frozen=True):
    """`block` or `count * block` in the pattern of a stack."""

    count: Number | None
    block: Name


class Stack(Node, frozen=True):
    """`stack name: block over dim`, or `stack name: [count * block, block] over dim`.

    `pattern` is empty in the first form; in the second, `block` is its first.
    """

    name: Name
    block: Name
    over: Name
    pattern: tuple[Layer, ...] = ()


class State(Node, frozen=True):
    """`state name: shape = init` in an optimizer; without a shape it has the parameter's."""

    name: Name
    init: Expr
    shape: TensorType | None = None


class Equation(Node, frozen=True):
    """`target = value`."""

    target: Name
    value: Expr


class Penalty(Equation, frozen=True):
    """`penalty target = value`: an equation whose value is added to the loss."""


class Total(Equation, frozen=True):
    """`total target = value`: an equation whose value is summed over the samples of a step."""


class Update(Equation, frozen=True):
    """`update target = value`: what a state is after a step."""


class Return(Node, frozen=True):
    """`return value`."""

    value: Expr


class Field(Node, frozen=True):
    """`key: value` in a record."""

    key: Name
    value: Expr


class FieldIn(Field, frozen=True):
    """`key in selector: value`: a field that speaks of the selected parameters alone.

    `selector` is one, or a list of them.
    """

    selector: Selector | List


class Repeat(Node, frozen=True):
    """`repeat times { ... }` in an optimizer: equations that are done again and again."""

    times: Number | Ref
    items: tuple[RuleItem, ...]


class Parameter(Node, frozen=True):
    """`name`, `name = default`, or `name: (part, part) = default` of an optimizer or a rate.

    `parts` names the items of a tuple argument; it is empty when the argument is not taken apart.
    """

    name: Name
    parts: tuple[Name, ...]
    default: Expr | None


class Shard(Node, frozen=True):
    """`shard dims over axes in selector`; without a selector, every value with these dims.

    `elsewhere` is set where the word ends the directive.
    """

    dims: tuple[Name, ...]
    axes: tuple[Name, ...]
    selector: Selector | None
    elsewhere: bool = False


class Zero(Node, frozen=True):
    """`zero stage over axes in selector`; without a selector, all parameters."""

    stage: Number
    axes: tuple[Name, ...]
    selector: Selector | None


class Offload(Node, frozen=True):
    """`offload selector`."""

    selector: Selector


class Compress(Node, frozen=True):
    """`compress selector`."""

    selector: Selector


class Recompute(Node, frozen=True):
    """`recompute selector keep [selectors]`; `keep` is None when nothing is said."""

    selector: Selector
    keep: tuple[Selector, ...] | None


class Freeze(Node, frozen=True):
    """`freeze selector`, or `freeze selector { rows: (0, 100) }`."""

    selector: Selector
    fields: tuple[Field, ...] | None = None


class Tune(Node, frozen=True):
    """`tune selector`, or `tune selector { rows: (0, 100) }`."""

    selector: Selector
    fields: tuple[Field, ...] | None = None


class Lora(Node, frozen=True):
    """`lora selector { rank: 8 }`."""

    selector: Selector
    fields: tuple[Field, ...]


class Quantize(Node, frozen=True):
    """`quantize selector { bits: 4 }`; nothing may stand behind the selector."""

    selector: Selector
    fields: tuple[Field, ...] = ()


class Place(Node, frozen=True):
    """`body[i].attn.{wq, wk}`: names, and behind a name its indices (a `Ref` or a `Number`).

    Also a key of a foreign configuration, `text_config.hidden_size`.
    """

    parts: tuple[Name | Alternatives | Ref | Number, ...]


class Side(Node, frozen=True):
    """`in.embed` or `out.embed`: which dim of a map with one dim on both sides."""

    side: Name
    dim: Name


class LayoutGroup(Node, frozen=True):
    """`(heads head_dim)`: several dims in one, the last varies fastest."""

    factors: tuple[LayoutAxis, ...]


class LayoutSum(Node, frozen=True):
    """`ffn + ffn`: what several parameters have there, one behind the other."""

    terms: tuple[LayoutAxis, ...]


LayoutAxis = Name | Side | Number | LayoutGroup | LayoutSum


class Layout(Node, frozen=True):
    """`[(heads head_dim), embed]`: a foreign tensor's dims in terms of a parameter's."""

    axes: tuple[LayoutAxis, ...]


class Split(Node, frozen=True):
    """`where heads = (kv_heads group)`: a parameter's dim as several."""

    dim: Name
    group: LayoutGroup


class Mapped(Node, frozen=True):
    """`place <-> "name" : layout`, or with the name of a checkpoint section for the layout.

    Of several names the first is written, and the others may be there too.
    """

    place: Place
    names: tuple[String, ...]
    layout: Layout | Name
    splits: tuple[Split, ...] = ()


class Ignored(Node, frozen=True):
    """`ignore "name"`."""

    name: String


class ConfigDim(Node, frozen=True):
    """`embed = hidden_size`: a dim and the key that holds its size."""

    dim: Name
    key: Place


class ConfigValue(Node, frozen=True):
    """`"hidden_act" = "silu"`: a key and the value that it must have."""

    key: String
    value: Expr


class Config(Node, frozen=True):
    """`config { ... }`."""

    items: tuple[ConfigDim | ConfigValue, ...]


BlockItem = (
    Param | BlockState | Sub | Stack | Equation | Penalty | Total | Update | Return | Require
)  # fmt: skip
RuleItem = State | Repeat | Equation | Return
ScheduleItem = Shard | Zero | Recompute | Offload | Compress | Field
AdapterItem = Freeze | Tune | Lora | Quantize
CheckpointItem = Mapped | Ignored | Config


# Sections.


class Import(Node, frozen=True):
    """`import "path" (names)`."""

    path: String
    names: tuple[Name, ...]


class Dims(Node, frozen=True):
    """`dims { ... }`."""

    items: tuple[Dim, ...]


class Block(Node, frozen=True):
    """`block name(inputs) -> result { ... }`, or `model ...` or `loss ...`.

    `numbers` are the inputs of a loss that a `train` section may give; each has a default.
    """

    kind: Literal["block", "model", "loss"]
    name: Name
    inputs: tuple[Input, ...]
    result: TensorType
    items: tuple[BlockItem, ...]
    numbers: tuple[Parameter, ...] = ()


class Data(Node, frozen=True):
    """`data name { ... }`."""

    name: Name
    fields: tuple[Field, ...]


class Stage(Node, frozen=True):
    """`stage name { ... }` in a run: fields that are other while it lasts."""

    name: Name
    fields: tuple[Field, ...]


class Train(Node, frozen=True):
    """`train name: subject { ... }`; the subject is a model or an adapter."""

    name: Name
    subject: Name
    fields: tuple[Field, ...]
    stages: tuple[Stage, ...] = ()


class Mesh(Node, frozen=True):
    """`mesh name { axis: size ... }`."""

    name: Name
    fields: tuple[Field, ...]


class Optimizer(Node, frozen=True):
    """`optimizer name(parameters) { ... }`."""

    name: Name
    parameters: tuple[Parameter, ...]
    items: tuple[RuleItem, ...]


class Rate(Node, frozen=True):
    """`rate name(parameters) { ... }`."""

    name: Name
    parameters: tuple[Parameter, ...]
    items: tuple[RuleItem, ...]


class Schedule(Node, frozen=True):
    """`schedule name for train on mesh { ... }`; both clauses may be absent."""

    name: Name
    train: Name | None
    mesh: Name | None
    items: tuple[ScheduleItem, ...]


class Adapter(Node, frozen=True):
    """`adapter name on model { ... }`."""

    name: Name
    model: Name
    items: tuple[AdapterItem, ...]


class Checkpoint(Node, frozen=True):
    """`checkpoint name for model { ... }`; the subject is a model or a block."""

    name: Name
    subject: Name
    items: tuple[CheckpointItem, ...]


class Target(Node, frozen=True):
    """`target name { ... }`: the figures of a device."""

    name: Name
    fields: tuple[Field, ...]


Section = (
    Import | Dims | Block | Data | Train | Mesh | Optimizer | Rate | Schedule | Adapter
    | Checkpoint | Target | Require
)  # fmt: skip


class File(Node, frozen=True):
    """A whole file. `version` is None when the header is absent (which is an error)."""

    version: int | None
    sections: tuple[Section, ...]


def _segment(segment: Name | Star | Index | Alternatives) -> str:
    match segment:
        case Name(text=text):
            return text
        case Star():
            return "*"
        case Index(value=value):
            return str(value)
        case Alternatives(options=options):
            return "{" + ", ".join(map(_segment, options)) + "}"
