"""All passes, by what they keep, and pipelines of them as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fllmc.ir.settings import Spec
from fllmc.passes import pipeline_text
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.base import Pass
from fllmc.passes.chunk_backward import ChunkBackward
from fllmc.passes.chunk_loss import ChunkLoss
from fllmc.passes.coalesce import Coalesce
from fllmc.passes.compress import Compress
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.early_rows import EarlyRows
from fllmc.passes.fuse import Fuse
from fllmc.passes.inline import Inline
from fllmc.passes.join_updates import JoinUpdates
from fllmc.passes.keep_apart import KeepApart
from fllmc.passes.layout import Layout
from fllmc.passes.offload import Offload
from fllmc.passes.optimizer_step import OptimizerStep
from fllmc.passes.overlap import Overlap
from fllmc.passes.pick_early import PickEarly
from fllmc.passes.place.place import Place
from fllmc.passes.quantize_frozen import QuantizeFrozen
from fllmc.passes.recompute import Recompute
from fllmc.passes.share_equal import ShareEqual
from fllmc.passes.sink_sums import SinkSums
from fllmc.passes.split_rows import SplitRows
from fllmc.passes.stages.directives import pipeline_shards, placing_shards
from fllmc.passes.stages.keep import Within
from fllmc.passes.store_frozen import StoreFrozen
from fllmc.passes.trim_last import TrimLast

PASSES: Final[tuple[type[Pass], ...]] = (
    Inline,
    KeepApart,
    ApplyAdapter,
    SplitRows,
    QuantizeFrozen,
    StoreFrozen,
    ApplyLoss,
    PickEarly,
    EarlyRows,
    DropUnused,
    ShareEqual,
    Differentiate,
    Accumulate,
    OptimizerStep,
    ChunkLoss,
    Recompute,
    ChunkBackward,
    Compress,
    Place,
    Offload,
    Coalesce,
    Layout,
    SinkSums,
    JoinUpdates,
    Fuse,
    TrimLast,
    Overlap,
)
"""Every pass, in the order in which a program usually meets them."""


def parse_pipeline(text: str, file: str = "pipeline") -> tuple[Pass, ...]:
    """The passes that the text spells; DiagnosticError with the place where it spells none."""
    return pipeline_text.parse_pipeline(text, PASSES, file)


def print_pipeline(passes: Sequence[Pass]) -> str:
    """The pipeline on one line, which parses back to equal passes."""
    return pipeline_text.print_pipeline(passes)


def standard_pipeline(
    spec: Spec, within: Recompute | Within | None = None, beside: Overlap | None = None
) -> tuple[Pass, ...]:
    """The passes that compile a spec, with the options that its sections ask for.

    `within` chooses what is kept under a budget, once it is known what a rank holds; before it only
    what directives select is recomputed, and, so that a budget changes no number, what is cheap to
    where values are compressed. `beside` lets transfers run beside computation, if given.
    """
    train, schedule = spec.train, spec.schedule
    return (
        *reading(spec),
        *adapting(spec),
        ShareEqual(),
        ApplyLoss(kind=train.loss.kind, z_loss=train.loss.z_loss),
        PickEarly(),
        EarlyRows(),
        Differentiate(),
        EarlyRows(),
        Accumulate(
            microbatches=schedule.microbatches,
            reduce=train.precision.reduce,
            always=bool(pipeline_shards(schedule, spec.program)),
        ),
        OptimizerStep(train.rate_steps or train.steps, train.clip, train.rate_begin),
        ShareEqual(),
        ChunkLoss(chunks=schedule.loss_chunks, reduce=train.precision.reduce),
        Recompute(selectors=schedule.recompute, cheap=within is None or bool(schedule.compress)),
        DropUnused(),
        ChunkBackward(chunks=schedule.backward_chunks, reduce=train.precision.reduce),
        *compressing(spec),
        Place(
            shards=placing_shards(schedule, spec.program),
            context=schedule.context,
            zero=schedule.zero,
            reduce=train.precision.reduce,
            expert_rows=schedule.expert_rows,
        ),
        ShareEqual(),
        DropUnused(),
        *keeping(spec, within),
        Coalesce(),
        Layout(),
        SinkSums(),
        JoinUpdates(),
        Fuse(),
        DropUnused(),
        TrimLast(),
        *((beside,) if beside is not None else ()),
    )


def reading(spec: Spec) -> tuple[Pass, ...]:
    """The passes that make the model one function, which sees samples as the data packs them."""
    return (Inline(),) if spec.data.pack == "stream" else (Inline(), KeepApart())


def compressing(spec: Spec) -> tuple[Pass, ...]:
    """The pass that a schedule with `compress` asks for."""
    schedule = spec.schedule
    if not schedule.compress:
        return ()
    return (Compress(schedule.compress, placing_shards(schedule, spec.program)),)


def adapting(spec: Spec) -> tuple[Pass, ...]:
    """The passes that an adapter asks for."""
    adapter, compute = spec.adapter, spec.train.precision.compute
    if adapter is None:
        return ()
    return (
        ApplyAdapter(freeze=adapter.freeze, tune=adapter.tune, lora=adapter.lora),
        SplitRows(rows=adapter.rows, dtype=compute),
        *((QuantizeFrozen(adapter.quantize),) if adapter.quantize else ()),
        StoreFrozen(dtype=compute),
    )


def keeping(spec: Spec, within: Recompute | Within | None) -> tuple[Pass, ...]:
    """The passes that say where what is kept is; the last of them once stages are cut."""
    offload = Offload(spec.schedule.offload, chosen=isinstance(within, Within))
    tidy = (ShareEqual(), DropUnused())
    if isinstance(within, Recompute):
        return (within, *tidy, offload)
    return (offload, *tidy) if within is not None else (offload,)


def cut_pipeline(passes: Sequence[Pass]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """The passes for the whole program, and those for the program of each pipeline stage."""
    at = next((at for at, each in enumerate(passes) if each.name == Offload.name), len(passes)) + 1
    return tuple(passes[:at]), tuple(passes[at:])
