"""The numbers of exit statuses, which scripts may rely on; docs/cli.md says what they mean."""

from __future__ import annotations

from typing import Final

SUCCESS: Final = 0
BAD_INPUT: Final = 1
USAGE: Final = 2
INFEASIBLE: Final = 3
NUMERIC: Final = 4
ENVIRONMENT: Final = 5
WORKER_FAILED: Final = 7
INTERNAL: Final = 70
STOPPED: Final = 75
"""Stopped on a signal with a checkpoint saved: `resume` goes on from there."""
SIGNALLED: Final = 128
"""Plus the signal's number: stopped at once, by a second signal."""
INTERRUPTED: Final = SIGNALLED + 2
