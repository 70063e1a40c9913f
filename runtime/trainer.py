"""The training run of one rank: begin or resume, step, validate, save, and stop when asked."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.plan import Plan
from fllmc.runtime import run_errors
from fllmc.runtime.beginning import begin_from
from fllmc.runtime.checkpoint.folders import find_latest
from fllmc.runtime.checkpoint.save import alone
from fllmc.runtime.communicator import Communicator
from fllmc.runtime.data.dataset import Dataset, open_dataset
from fllmc.runtime.evaluating import evaluation
from fllmc.runtime.executor import Executor
from fllmc.runtime.feeding import Feeder
from fllmc.runtime.initialise import initialise
from fllmc.runtime.measuring import Stopwatch, check_collectives, peak_resident_bytes
from fllmc.runtime.metrics import MetricsWriter
from fllmc.runtime.options import Options
from fllmc.runtime.parts import lasting_parts
from fllmc.runtime.progress import Display, Report
from fllmc.runtime.resuming import Progress, facts_of, restore_run, save_run
from fllmc.runtime.run_folder import CHECKPOINTS, METRICS, plan_hash
from fllmc.runtime.statuses import STOPPED, SUCCESS
from fllmc.runtime.stopping import Stop
from fllmc.runtime.telling import moved_line, opening_lines, sampled, valid_lines

TOKENIZER = "tokenizer.json"


class Outcome(msgspec.Struct, frozen=True):
    """What a run came to. Losses are of the last step and of the last validation, where made."""

    status: int
    step: int
    folder: str
    loss: float | None = None
    valid: float | None = None


class Run:
    """One rank's run. `options.folder` is chosen; all ranks are given the same."""

    def __init__(
        self,
        plan: Plan,
        source: str,
        options: Options,
        comm: Communicator | None,
        rank: int,
        device: str,
    ) -> None:
        self.plan, self.options, self.comm, self.rank = plan, options, comm, rank
        self.gather = comm.gather if comm else alone
        self.folder = Path(options.folder)
        self.steps = options.steps or plan.train.steps
        if plan.train.stage:
            self.steps = min(self.steps, plan.train.steps)
        self.dataset = self._dataset()
        self.executor = Executor(plan, source, rank, comm, device)
        self.parts = lasting_parts(plan, rank)
        self.feeder = Feeder(plan, self.executor, "train", rank)
        self.evaluation = evaluation(plan, self.executor, self.dataset.held_out, rank, comm)
        self.facts = facts_of(plan, self.dataset)
        self.hash = plan_hash(plan)
        self.done, self.saved = Progress(), -1
        self.loss: float | None = None
        self.valid: float | None = None
        self.watch = Stopwatch()

    def _dataset(self) -> Dataset:
        """Rank 0 goes first: a tokenizer that must be trained is trained once."""
        if self.rank == 0:
            dataset = self._open_dataset()
            self.gather(None)
            return dataset
        self.gather(None)
        return self._open_dataset()

    def _open_dataset(self) -> Dataset:
        plan = self.plan
        trained = self.folder / TOKENIZER
        return open_dataset(plan.data, Path(self.options.base), trained, plan.train.loss.mask)

    def begin(self, display: Display) -> None:
        """Fill the arena anew, from what the run begins with, or from the newest checkpoint."""
        if not self.options.resume:
            if not self.plan.train.init:
                initialise(self.plan, self.executor, self.parts)
                return
            path = Path(self.options.base) / self.plan.train.init
            begin_from(self.plan, path, self.executor, self.parts, self.rank, self.folder)
            display.say(f"parameters begin as they are in {path}")
            return
        resumed = restore_run(
            self.folder,
            self.plan,
            self.facts,
            self.executor,
            self.parts,
            rank=self.rank,
            gather=self.gather,
        )
        self.done, self.saved = resumed.done, resumed.done.step
        for warning in resumed.warnings:
            display.say(f"warning[{warning.code}]: {warning.message()}")
        if resumed.entered:
            return
        other = "" if resumed.plan == self.hash else ", written under another plan"
        display.say(f"resumed at step {self.done.step} from {resumed.path}{other}")

    def loop(self, display: Display, metrics: MetricsWriter | None, stop: Stop) -> bool:
        """Train up to the last step; whether it got there rather than being stopped."""
        train = self.plan.train
        while self.done.step < self.steps:
            if self.comm.any(stop.asked) if self.comm else stop.asked:
                return False
            seconds = self.step()
            step = self.done.step
            last = step == self.steps
            if self.evaluation and (last or _due(step, train.evaluate_every)):
                self.valid = self.evaluation.loss()
            self.report(display, metrics, seconds)
            if last or _due(step, train.checkpoint_every):
                self.save()
        if self.evaluation and self.valid is None:  # resumed where nothing was left to do
            self.valid = self.evaluation.loss()
        return True

    def step(self) -> float:
        """One training step; its seconds. A loss that is not finite ends the run."""
        self.watch.begin()
        self.feeder.fill(self.done.samples, self.dataset.train.batch)
        step = self.done.step + 1
        self.executor.run("train", step=step, seed=self.plan.train.seed)
        for name in ("loss", "grad_norm"):
            value = self.output(name)
            if value is not None and not math.isfinite(value):
                raise DiagnosticError(self.not_finite(step, name, value))
        self.loss = self.output("loss")
        self.valid = None
        self.done = Progress(step, self.done.samples + self.feeder.layout.samples)
        return self.watch.end()

    def not_finite(self, step: int, name: str, value: float) -> run_errors.NotFinite:
        """The diagnostic, which says what can be gone back to."""
        latest = find_latest(self.folder / CHECKPOINTS)
        kept = f"the last checkpoint is {latest}" if latest else "no checkpoint was saved before it"
        what = {"loss": "the loss", "grad_norm": "the norm of the gradients"}[name]
        return run_errors.NotFinite(self.plan.train.span, step, what, f"{value}", kept)

    def output(self, name: str) -> float | None:
        """An output of the step without dims, or None where the plan has none such."""
        known = any(stored.name == name for stored in self.executor.plan.stored)
        return float(self.executor.tensor(name).item()) if known else None

    def report(self, display: Display, metrics: MetricsWriter | None, seconds: float) -> None:
        """Show and record the step that is done."""
        if self.rank != 0:
            return
        step, layout = self.done.step, self.feeder.layout
        tokens = layout.samples * layout.seq
        record: dict[str, float | None] = {"loss": self.loss}
        for name in ("rate", "grad_norm"):
            if (value := self.output(name)) is not None:
                record[name] = value
        if self.valid is not None:
            record["valid_loss"] = self.valid
        record |= {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "planned_arena_bytes": self.plan.arena_bytes,
            "allocated_arena_bytes": self.executor.allocated_bytes,
            "peak_resident_bytes": peak_resident_bytes(),
        }
        if metrics:
            metrics.write(step, record)
        keep = step in (1, self.steps) or self.valid is not None
        keep = keep or _due(step, self.plan.train.log_every)
        mean = self.watch.mean() if keep else seconds
        display.show(
            Report(
                step,
                self.loss or 0.0,
                self.valid,
                tokens / mean,
                mean,
                self.executor.allocated_bytes,
                self.plan.arena_bytes,
            ),
            keep,
        )

    def save(self) -> None:
        """Commit a checkpoint, unless this step's is there already."""
        if self.saved == self.done.step:
            return
        save_run(
            self.folder,
            self.hash,
            self.plan.train.seed,
            self.facts,
            self.done,
            self.executor,
            self.parts,
            rank=self.rank,
            gather=self.gather,
            keep=self.options.keep,
        )
        self.saved = self.done.step


def train(
    plan: Plan,
    source: str,
    options: Options,
    comm: Communicator | None = None,
    rank: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Carry out the plan on this rank. All ranks call it together. Raises DiagnosticError.

    Rank 0 shows progress on standard error and prints sampled text on standard output.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        run = Run(plan, source, options, comm, rank, device)
        shown = rank == 0 and not options.quiet
        display = stack.enter_context(Display(run.steps, shown))
        for line in opening_lines(plan, run.dataset, options.folder, device):
            display.say(line)
        run.begin(display)
        metrics = None
        if rank == 0:
            resumed = run.done.step if options.resume else None
            metrics = stack.enter_context(MetricsWriter(run.folder / METRICS, resumed))
        finished = run.loop(display, metrics, stop)
        if not finished:
            run.save()
            display.say(f"stopped after step {run.done.step}; its checkpoint is saved")
            return Outcome(STOPPED, run.done.step, options.folder, run.loss, run.valid)
        conclude(run, display)
    return Outcome(SUCCESS, run.done.step, options.folder, run.loss, run.valid)


def conclude(run: Run, display: Display) -> None:
    """What follows the last step: the final loss, the check of collectives, a sample of text."""
    for line in valid_lines(run.dataset, run.valid, run.options.baseline and run.rank == 0):
        display.say(line)
    text = sampled(run.plan, run.executor, run.dataset.tokenizer, run.comm)
    moved = check_collectives(run.executor)
    if line := moved_line(run.executor.plan, moved):
        display.say(line)
    if text is not None and run.rank == 0:
        display.say("")
        print(text, flush=True)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
