"""What is said before the first step and after the last."""

from __future__ import annotations

from collections.abc import Iterator

from fllmc.ir.plan import Plan
from fllmc.ir.quantities import bytes_text
from fllmc.runtime.communicator import Communicator
from fllmc.runtime.data.baseline import bigram_baseline
from fllmc.runtime.data.dataset import Dataset, source_text
from fllmc.runtime.data.tokenizers import Tokenizer
from fllmc.runtime.executor import Executor
from fllmc.runtime.parts import parameter_count
from fllmc.runtime.sampling import ENTRY, sample_text


def opening_lines(plan: Plan, dataset: Dataset, folder: str, device: str) -> Iterator[str]:
    """The run, its mesh, its data, and what makes it another computation than the spec's."""
    count, mesh = f"{parameter_count(plan):,} parameters", plan.program.mesh
    train = plan.train
    stage = (
        f", stage {train.stage}, steps {train.begin + 1} to {train.steps}" if train.stage else ""
    )
    yield f"{train.name}{stage}: {count} on {mesh} ({device}), into {folder}"
    held = f"{dataset.held_out.count:,}" if dataset.held_out else "none"
    tokens = f"{dataset.train.count:,} tokens to train on, {held} held out"
    yield f"{source_text(dataset.data)}: {tokens}, sha256 {dataset.sha256[:12]}"
    for decision in plan.decisions:
        if decision.subject.startswith("compress "):
            yield f"{decision.subject}: {decision.choice}"


def valid_lines(dataset: Dataset, valid: float | None, baseline: bool) -> Iterator[str]:
    """The last validation loss, and beside it what counting letter pairs achieves on bytes."""
    if valid is None or dataset.held_out is None:
        return
    yield f"validation loss {valid:.4f} over {dataset.held_out.count:,} held-out tokens"
    if baseline and dataset.tokenizer.name == "bytes" and dataset.held_text:
        pairs = bigram_baseline(dataset.train_text, dataset.held_text)
        yield f"letter pairs    {pairs:.4f} by an interpolated byte-bigram model on the same text"


def moved_line(plan: Plan, moved: int) -> str:
    """The counted bytes of collectives, which `check_collectives` has compared with the plan."""
    if not plan.collectives:
        return ""
    sites = len({each.site for each in plan.collectives})
    ragged = any(each.kind == "exchange_rows" for each in plan.collectives)
    said = "at most what is planned" if ragged else "as planned"
    return f"collectives moved {bytes_text(moved)} per rank at {sites} sites, {said}"


def sampled(
    plan: Plan, executor: Executor, tokenizer: Tokenizer, comm: Communicator | None
) -> str | None:
    """The text that the spec asks for, or None."""
    if plan.train.sample.tokens <= 0 or ENTRY not in plan.program.entries:
        return None
    return sample_text(plan, executor, tokenizer, comm)
