"""Checking takes work in proportion to the text; seconds are measured by bench/large_spec.py."""

from __future__ import annotations

import importlib.util
import sys
from types import FrameType

from fllmc.frontend import load
from tests.house.tree import ROOT

CALLS_A_LINE = 900
"""What a line may cost in calls, most of which take less than half a microsecond."""


def large_spec(blocks: int) -> str:
    """The spec that the bench measures."""
    spec = importlib.util.spec_from_file_location("large_spec", ROOT / "bench" / "large_spec.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.large_spec(blocks)


def calls(text: str) -> int:
    """How many functions are called to check a text, which must be without mistakes."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        spec, found, _ = load("large.fllm", text=text)
    finally:
        sys.setprofile(None)
    assert found == () and spec is not None
    return count


def test_work_grows_as_the_text_does() -> None:
    load("large.fllm", text=large_spec(1))
    small, large = large_spec(20), large_spec(80)
    growth = large.count("\n") / small.count("\n")
    first, second = calls(small), calls(large)
    assert second < 1.15 * growth * first
    assert second < CALLS_A_LINE * large.count("\n")
