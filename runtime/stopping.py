"""Stopping on a signal: once to save and stop, twice to stop at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

ECHO_SECONDS = 1.0
"""A terminal and a launcher both pass on one Ctrl-C; within this time it counts as one."""


def heeded() -> list[signal.Signals]:
    """The signals that ask a run to stop, less those that its starter set it to ignore (nohup)."""
    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in asking if signal.getsignal(number) is not signal.SIG_IGN]


class Stop:
    """While entered, `asked` turns true at the first signal; a later second one ends the process.

    A process that is not the main thread's, as under some test runners, hears no signals.
    """

    def __init__(self) -> None:
        self.asked = False
        self.number = 0
        self._at = 0.0
        self._before: dict[int, signal.Handlers | int | object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _heard(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._at > ECHO_SECONDS:
            os._exit(128 + number)
        if not self.asked:
            self.asked, self.number, self._at = True, number, now
