"""What a person sees of a run, on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from fllmc.ir.quantities import bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Report(msgspec.Struct, frozen=True):
    """One step as it is shown. `valid` is None where the step was not followed by validation."""

    step: int
    loss: float
    valid: float | None
    tokens_per_second: float
    seconds: float
    allocated: int
    planned: int

    def line(self, width: int) -> str:
        """`step  50  loss 2.870  valid 2.960  27.9k tok/s  12 ms/step  memory 61.0 MiB (...)`."""
        valid = f"valid {self.valid:.3f}  " if self.valid is not None else ""
        rate = count_text(self.tokens_per_second, ("", "k", "M", "G"))
        return (
            f"step {self.step:>{width}}  loss {self.loss:.3f}  {valid}"
            f"{rate} tok/s  {seconds_text(self.seconds)}/step  "
            f"memory {bytes_text(self.allocated)} (planned {bytes_text(self.planned)})"
        )


class Display:
    """Shows a run of `steps` steps. One that is not `on`, as on all ranks but one, is silent."""

    def __init__(self, steps: int, on: bool = True) -> None:
        self.steps, self.on = steps, on
        self._bar: Bar | None = None

    def __enter__(self) -> Display:
        if self.on and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(24), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=self.steps)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.on:
            return
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def show(self, report: Report, keep: bool) -> None:
        """A step is done: the bar moves, and `keep` leaves a line."""
        if keep:
            self.say(report.line(len(str(self.steps))))
        if self._bar:
            task = self._bar.task_ids[0]
            text = f"step {report.step} of {self.steps}  loss {report.loss:.3f}"
            self._bar.update(task, completed=report.step, description=text)
