"""What the sections beside the model say, checked and with every default filled in.

The frontend makes these, the driver turns them into passes with options, and the plan keeps what
the run needs. Nothing here refers to the syntax.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fllmc.ir.foreign import Foreign
from fllmc.ir.program import Program
from fllmc.ir.span import NOWHERE, Span
from fllmc.ir.target import Target
from fllmc.ir.types import Mesh


class Precision(msgspec.Struct, frozen=True):
    """Dtypes: of stored parameters, of computation, and of gradient accumulation and reduction."""

    params: str = "f32"
    compute: str = "f32"
    reduce: str = "f32"


class Chat(msgspec.Struct, frozen=True):
    """How conversations are written: `{role}` in `open` and `close` stands for the role.

    Turns of the roles in `learn` count in the loss, with what closes them; `begin` opens the whole.
    """

    begin: str = ""
    open: str = "<|im_start|>{role}\n"
    close: str = "<|im_end|>\n"
    learn: tuple[str, ...] = ("assistant",)


class FillMiddle(msgspec.Struct, frozen=True):
    """Documents told out of order (fill in the middle): how often, and as SPM rather than PSM.

    The marks are tokens, by number or as text that is one token.
    """

    rate: float = 0.5
    spm: float = 0.5
    prefix: int | str = "<fim_prefix>"
    suffix: int | str = "<fim_suffix>"
    middle: int | str = "<fim_middle>"


Pack = Literal["stream", "documents", "whole"]
"""How documents share samples: without regard to where they end, kept apart and cut where a sample
ends, or whole with padding behind them."""


class Data(msgspec.Struct, frozen=True):
    """A data source and how it is cut into samples.

    `source` is `builtin:NAME` or a path or glob, relative to `folder`; of a mixture it is empty and
    `parts` are its sources, which `weights` weigh. `tokenizer` is `bytes`, `none`, `bpe:VOCAB`
    (trained on the training part) or the path of a tokenizer file. `holdout` is the fraction at the
    end that is only validated on. `batch` counts samples, `seq` tokens. `end` is the token behind
    each document. `stored` is how raw token files hold numbers. `columns` are the numbers that come
    with the tokens.
    """

    name: str
    source: str
    batch: int
    seq: int
    tokenizer: str = "bytes"
    vocab: int = 256
    holdout: float = 0.1
    seed: int = 0
    pack: Pack = "stream"
    folder: str = ""
    span: Span = NOWHERE
    end: int | str | None = None
    stored: Literal["u16", "u32"] = "u16"
    columns: tuple[str, ...] = ()
    chat: Chat = Chat()
    fim: FillMiddle | None = None
    parts: tuple[Data, ...] = ()
    weights: tuple[float, ...] = ()


class Loss(msgspec.Struct, frozen=True):
    """The training loss. `mask` names the data field with per-token weights, or is empty.

    The equations of another `kind` than `cross_entropy` are the program's function `loss`;
    `numbers` are what they were given.
    """

    kind: str = "cross_entropy"
    z_loss: float = 0.0
    mask: str = ""
    numbers: tuple[tuple[str, float], ...] = ()


class Sample(msgspec.Struct, frozen=True):
    """Text to generate at the end of a run; `tokens` 0 for none."""

    prompt: str = ""
    tokens: int = 0
    temperature: float = 0.8


class Train(msgspec.Struct, frozen=True):
    """A training run. The optimizer and rate are functions of the program.

    `clip` is the largest allowed global gradient norm, 0 for none. Intervals are in steps, 0 for
    never.

    A stage of a run goes from step `begin` up to `steps`, its first sample is number
    `first_sample`, and its rate counts from `rate_begin` on for `rate_steps`, 0 for all.
    """

    name: str
    model: str
    steps: int
    loss: Loss = Loss()
    precision: Precision = Precision()
    clip: float = 0.0
    seed: int = 0
    evaluate_every: int = 0
    checkpoint_every: int = 0
    log_every: int = 10
    sample: Sample = Sample()
    init: str = ""
    span: Span = NOWHERE
    stage: str = ""
    begin: int = 0
    first_sample: int = 0
    rate_begin: int = 0
    rate_steps: int = 0


class Shard(msgspec.Struct, frozen=True):
    """`shard DIMS over AXES`; with a selector it speaks of the stored parameters alone.

    An `optional` one, of the default schedule, leaves dims whole that the axes do not divide. One
    that says `elsewhere` yields: it holds in values none of whose other dims is on the axes.
    """

    dims: tuple[str, ...]
    axes: tuple[str, ...]
    selector: str = ""
    span: Span = NOWHERE
    optional: bool = False
    elsewhere: bool = False


class Zero(msgspec.Struct, frozen=True):
    """`zero STAGE over AXES in SELECTOR`: what of a parameter's state is divided (ZeRO, 2020).

    1: optimizer state and master copy, 2: gradients too, 3: the parameters themselves too.
    """

    stage: int
    axes: tuple[str, ...]
    selector: str = "*"
    span: Span = NOWHERE


class Recompute(msgspec.Struct, frozen=True):
    """`recompute SELECTOR keep [...]`: values under these paths are not kept for the backward."""

    selector: str
    keep: tuple[str, ...] = ()
    span: Span = NOWHERE


class Offload(msgspec.Struct, frozen=True):
    """`offload SELECTOR`: what is kept under these paths waits for the backward in host memory."""

    selector: str
    span: Span = NOWHERE


class Compress(msgspec.Struct, frozen=True):
    """`compress SELECTOR`: what is kept under these paths is rounded to 8 bits in the meantime.

    The backward pass reads what is left of it, so gradients change.
    """

    selector: str
    span: Span = NOWHERE


class Pipeline(msgspec.Struct, frozen=True):
    """The order in which pipeline stages work; see `passes/schedule`.

    `chunks` are the virtual stages of a rank. `memory` bounds kept activations, in those that 1F1B
    keeps on its first stage; 0 stands for no bound, and for 1 where an order is looked for. An
    `exact` order is looked for until it is proven best, or the solver's effort is spent.
    """

    kind: str = "1f1b"
    chunks: int = 1
    memory: float = 0.0
    span: Span = NOWHERE
    exact: bool = False


class Lora(msgspec.Struct, frozen=True):
    """Low-rank updates on the selected arrows (Hu et al. 2021): y + alpha/rank * b(a(x))."""

    selector: str
    rank: int
    alpha: float
    dropout: float = 0.0
    span: Span = NOWHERE


class Quantize(msgspec.Struct, frozen=True):
    """Selected frozen maps in `bits`, 4 (NF4) or 8, with a scale for each `block` of elements.

    Blocks lie `along` a dim; if it is empty, along the one that suits best.
    """

    selector: str
    bits: int = 4
    block: int = 64
    along: str = ""
    span: Span = NOWHERE


class Rows(msgspec.Struct, frozen=True):
    """Rows [first, stop) of the selected parameters are frozen, or trained where `tune` is set.

    Rows count along a parameter's first dim, of each layer of a stack.
    """

    selector: str
    first: int
    stop: int
    tune: bool = False
    span: Span = NOWHERE


class Adapter(msgspec.Struct, frozen=True):
    """What an adapter changes, in order: frozen, tuned, rows, low-rank updates, bits."""

    name: str
    freeze: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    lora: tuple[Lora, ...] = ()
    rows: tuple[Rows, ...] = ()
    quantize: tuple[Quantize, ...] = ()


Context = Literal["gather", "ring", "exchange"]
"""How attention sees a sequence that an axis divides: keys and values are gathered, or handed
round a ring, or heads are exchanged for sequence."""


ExpertRows = Literal["routed", "padded"]
"""What is moved to experts without a capacity: the rows in use, or the room for all that may be."""


Switch = Literal["on", "off"]


class Schedule(msgspec.Struct, frozen=True):
    """Placement and memory directives.

    `budget_gib` bounds the memory of a rank in GiB; 0 is no bound. `host_gib` bounds what of it
    waits in host memory instead; without it the target's figure does. `loss_chunks` and
    `backward_chunks` cut the loss and the backward pass of a layer along the sequence. With
    `overlap` collectives and host copies run beside computation. `places` are where fields stand in
    the text.
    """

    name: str = "default"
    shards: tuple[Shard, ...] = ()
    recompute: tuple[Recompute, ...] = ()
    microbatches: int = 1
    zero: tuple[Zero, ...] = ()
    offload: tuple[Offload, ...] = ()
    compress: tuple[Compress, ...] = ()
    pipeline: Pipeline | None = None
    context: Context = "gather"
    expert_rows: ExpertRows = "routed"
    budget_gib: float = 0.0
    host_gib: float | None = None
    loss_chunks: int = 1
    backward_chunks: int = 1
    overlap: Switch = "on"
    places: tuple[tuple[str, Span], ...] = ()

    def place_of(self, field: str) -> Span:
        """Where a field stands, or nowhere."""
        return dict(self.places).get(field, NOWHERE)

    def host_bytes(self, target: Target) -> int:
        """The bytes of a rank's host memory in which values may wait."""
        return target.host_bytes if self.host_gib is None else int(self.host_gib * 2**30)


class Spec(msgspec.Struct, frozen=True):
    """A checked spec: the model program and the settings of the one run that is compiled.

    The program's functions include the entry `model`, and `optimizer`, `optimizer.no_decay`,
    `optimizer.states` and `rate` over scalars. `mesh` is the one declared in the file, if any.
    `schedules` are the file's (with the mesh's name they are for), the chosen one first. Of a run
    in stages this is the first part, and `later` are the others.
    """

    name: str
    program: Program
    data: Data
    train: Train
    schedule: Schedule = Schedule()
    mesh: Mesh = Mesh()
    adapter: Adapter | None = None
    sources: tuple[tuple[str, str], ...] = ()
    foreign: Foreign | None = None
    later: tuple[Spec, ...] = ()
