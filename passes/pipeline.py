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
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.fuse import Fuse
from fllmc.passes.inline import Inline
from fllmc.passes.layout import Layout
from fllmc.passes.optimizer_step import OptimizerStep
from fllmc.passes.place.place import Place
from fllmc.passes.recompute import Recompute
from fllmc.passes.share_equal import ShareEqual
from fllmc.passes.sink_sums import SinkSums
from fllmc.passes.store_frozen import StoreFrozen
from fllmc.passes.trim_last import TrimLast

PASSES: Final[tuple[type[Pass], ...]] = (
    Inline,
    ApplyAdapter,
    StoreFrozen,
    ApplyLoss,
    DropUnused,
    ShareEqual,
    Differentiate,
    Accumulate,
    OptimizerStep,
    Recompute,
    Place,
    Layout,
    SinkSums,
    Fuse,
    TrimLast,
)
"""Every pass, in the order in which a program usually meets them."""


def parse_pipeline(text: str, file: str = "pipeline") -> tuple[Pass, ...]:
    """The passes that the text spells; DiagnosticError with the place where it spells none."""
    return pipeline_text.parse_pipeline(text, PASSES, file)


def print_pipeline(passes: Sequence[Pass]) -> str:
    """The pipeline on one line, which parses back to equal passes."""
    return pipeline_text.print_pipeline(passes)


def standard_pipeline(spec: Spec) -> tuple[Pass, ...]:
    """The passes that compile a spec, with the options that its sections ask for."""
    train, schedule, adapter = spec.train, spec.schedule, spec.adapter
    adapt: tuple[Pass, ...] = ()
    if adapter is not None:
        adapt = (
            ApplyAdapter(freeze=adapter.freeze, tune=adapter.tune, lora=adapter.lora),
            StoreFrozen(dtype=train.precision.compute),
        )
    return (
        Inline(),
        *adapt,
        ShareEqual(),
        ApplyLoss(kind=train.loss.kind, z_loss=train.loss.z_loss),
        Differentiate(),
        Accumulate(microbatches=schedule.microbatches, reduce=train.precision.reduce),
        OptimizerStep(clip=train.clip, steps=train.steps),
        ShareEqual(),
        Recompute(selectors=schedule.recompute),
        DropUnused(),
        Place(shards=schedule.shards, context=schedule.context),
        ShareEqual(),
        DropUnused(),
        Layout(),
        SinkSums(),
        Fuse(),
        DropUnused(),
        TrimLast(),
    )
