"""What a run is told beside its plan: plain values that cross to other processes."""

from __future__ import annotations

from typing import Literal

import msgspec

Device = Literal["auto", "cpu", "cuda"]


class Options(msgspec.Struct, frozen=True):
    """How to carry out a plan.

    `folder` is the run's folder; when empty a new one is made, `RUNS/NAME-HASH`. `base` is what
    the data's folder is relative to. `resume` goes on from the folder's newest checkpoint.
    `steps` ends the run early, 0 for the plan's own number. `threads` is for each process, 0 for a
    choice by size. `keep` is how many checkpoints are kept, 0 for all. `baseline` counts letter
    pairs, too. `sources` are the spec's files with their texts, for diagnostics.
    """

    name: str = ""
    folder: str = ""
    runs: str = "runs"
    base: str = "."
    resume: bool = False
    steps: int = 0
    device: Device = "auto"
    threads: int = 0
    keep: int = 0
    baseline: bool = False
    color: bool = False
    quiet: bool = False
    sources: tuple[tuple[str, str], ...] = ()
