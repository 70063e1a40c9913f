"""The metrics of a run: one JSON object a line, each written out at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE
from fllmc.runtime import errors

Record: TypeAlias = dict[str, Any]


class MetricsWriter:
    """Appends records to a JSONL file. Numbers that are not finite are written as null.

    A new run starts the file anew. A run resumed at `resumed` keeps the records up to that step,
    and drops those of the steps it will do again and a last line cut short by a kill.
    """

    def __init__(self, path: Path, resumed: int | None = None) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [] if resumed is None else _up_to(path, resumed)
            partial = path.with_name(f"{path.name}.tmp")
            partial.write_bytes(b"".join(kept))
            partial.replace(path)
            self._file = path.open("ab")
        except OSError as error:
            raise self._unusable(error) from error

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append `{"step": step, ...}` and hand it to the system."""
        try:
            self._file.write(msgspec.json.encode({"step": step, **values}) + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _unusable(self, error: OSError) -> DiagnosticError:
        reason = error.strerror or str(error)
        return DiagnosticError(errors.MetricsUnusable(NOWHERE, str(self.path), reason))


def read_metrics(path: Path) -> list[Record]:
    """All whole records of a file, in order."""
    return [record for line in path.read_bytes().splitlines() if (record := _record(line))]


def _up_to(path: Path, step: int) -> list[bytes]:
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    records = ((line, _record(line)) for line in lines if line.endswith(b"\n"))
    return [line for line, record in records if record and record["step"] <= step]


def _record(line: bytes) -> Record | None:
    try:
        record = msgspec.json.decode(line, type=Record)
    except msgspec.DecodeError:
        return None
    return record if isinstance(record.get("step"), int) else None
