"""What a process that fails leaves for the one that reports: a record, and its traceback."""

from __future__ import annotations

import re
import time
import traceback
from pathlib import Path

import msgspec

from fllmc.ir.diagnostics import DiagnosticError, InternalError
from fllmc.ir.render import render
from fllmc.ir.span import NOWHERE
from fllmc.runtime.options import Options
from fllmc.runtime.run_errors import WorkerFailed
from fllmc.runtime.run_folder import FAILURES
from fllmc.runtime.statuses import INTERNAL, WORKER_FAILED, status_of

_LOST_PEER = re.compile(r"connection (closed|reset|refused)|broken pipe|socket|peer", re.IGNORECASE)


class Failure(msgspec.Struct, frozen=True):
    """One process's failure: when, the exit status it means, and the text to print.

    `follows` where it looks like the result of another process's end.
    """

    rank: int
    at: int
    status: int
    text: str
    follows: bool = False


def describe_failure(error: BaseException, rank: int, options: Options, at: int = 0) -> Failure:
    """The failure as people are told of it. Tracebacks go to a file in the run's folder."""
    if isinstance(error, DiagnosticError):
        text = render(error.diagnostics, dict(options.sources), options.color)
        return Failure(rank, at, status_of(error.diagnostics), text)
    file = _keep_traceback(error, rank, options)
    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    text = render([WorkerFailed(NOWHERE, rank, reason.rstrip(": "), file)], {}, options.color)
    if isinstance(error, InternalError):
        return Failure(rank, at, INTERNAL, text)
    return Failure(rank, at, WORKER_FAILED, text, _LOST_PEER.search(str(error)) is not None)


def _keep_traceback(error: BaseException, rank: int, options: Options) -> str:
    file = Path(options.folder or ".") / FAILURES / f"rank-{rank:05d}.txt"
    lines = "".join(traceback.format_exception(error))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(lines)
    except OSError as reason:
        return f"no file ({reason.strerror}):\n{lines}"
    return str(file)


def leave_failure(error: BaseException, rank: int, options: Options, post: Path) -> Failure:
    """Write the record of a failure to the folder `post`."""
    failure = describe_failure(error, rank, options, time.time_ns())
    (post / f"{rank}.json").write_bytes(msgspec.json.encode(failure))
    return failure


def first_failure(post: Path) -> Failure | None:
    """The earliest failure that is not the result of another, or the earliest of all."""
    found = [msgspec.json.decode(p.read_bytes(), type=Failure) for p in post.glob("*.json")]
    return min(found, key=lambda failure: (failure.follows, failure.at), default=None)
