"""Plants bugs and says of each whether it shows: run as a program, which prints a line for each.

    python -m tests.oracle.judge_of_bugs BUGS.json

The compiler is imported anew in a process of its own for each bug, with one module's source
changed. What training gives is compared with what the unchanged compiler gives on one device; both
are run by the evaluator. A bug shows if the compiler refuses its own work, or if numbers differ.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from tests.oracle.planted_bugs import Bug

TOLERANCE = 1e-9
BATCH, SEQ, VOCAB = 16, 8, 256


class Planted(SourceFileLoader):
    """Loads one module with a piece of its source replaced; the piece must stand there once."""

    def __init__(self, name: str, path: str, old: str, new: str) -> None:
        super().__init__(name, path)
        self.old, self.new = old, new

    def get_code(self, fullname: str) -> CodeType:
        """The changed module's code; no cached one is read or written."""
        source = Path(self.path).read_text(encoding="utf-8")
        if source.count(self.old) != 1:
            raise LookupError(f"{fullname} has {source.count(self.old)} of {self.old!r}")
        return compile(source.replace(self.old, self.new), self.path, "exec")


class Planter(importlib.abc.MetaPathFinder):
    """Finds the one module to change."""

    def __init__(self, bug: Bug) -> None:
        self.bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The changed module; None for all others."""
        if fullname != f"fllmc.{self.bug.module}":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None and spec.origin is not None
        loader = Planted(fullname, spec.origin, self.bug.old, self.bug.new)
        return importlib.machinery.ModuleSpec(fullname, loader, origin=spec.origin)


def answers(techniques: Sequence[str], single: bool, compute: str = "f64") -> dict[str, np.ndarray]:
    """What a training step gives, by the names of parameters, states and metrics."""
    from tests.oracle.techniques import alone, combined
    from tests.specs.evaluated import evaluated_step

    case = (alone if single else combined)(techniques)
    return evaluated_step(case.text.replace("compute: f64", f"compute: {compute}"), case.mesh)


def shows(bug: Bug, wanted: dict[str, np.ndarray]) -> str:
    """How the bug shows; empty if it does not."""
    sys.meta_path.insert(0, Planter(bug))
    try:
        found = answers(bug.techniques, single=False, compute=bug.compute)
    except LookupError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"
    return difference(found, wanted)


def difference(
    found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float = TOLERANCE
) -> str:
    """Where two answers differ; empty if nowhere."""
    if found.keys() != wanted.keys():
        return f"other results: {sorted(found.keys() ^ wanted.keys())[:3]}"
    for name, value in wanted.items():
        error = float(np.linalg.norm(found[name] - value))
        if not error <= tolerance * max(float(np.linalg.norm(value)), 1e-6):
            return f"{name} is off by {error:.1e}"
    return ""


def in_a_child(work: str, path: Path) -> None:
    """Fork; the child does the work and ends."""
    child = os.fork()
    if child == 0:
        try:
            bugs = msgspec.json.decode(path.read_bytes())
            _child(work, path, bugs)
        except BaseException as error:
            print(f"broken\t{work}\t{error!r}", flush=True)
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)


def _child(work: str, path: Path, bugs: Iterable[dict[str, object]]) -> None:
    from tests.oracle.planted_bugs import Bug

    kind, _, number = work.partition(" ")
    bug = msgspec.convert(list(bugs)[int(number)], Bug)
    folder = path.parent
    if kind == "reference":
        wanted = answers(bug.techniques, single=True)
        save(folder / f"wanted{number}.npz", wanted)
        wrong = difference(answers(bug.techniques, single=False), wanted)
        print(f"clean\t{bug.name}\t{wrong}", flush=True)
        return
    with np.load(folder / f"wanted{number}.npz") as file:
        how = shows(bug, {name: file[name] for name in file.files})
    print(f"{'shown' if how else 'missed'}\t{bug.name}\t{how}", flush=True)


def save(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name."""
    np.savez(path, allow_pickle=False, **values)


def main(path: Path) -> None:
    """For each set of techniques that all is well without a bug; for each bug how it shows."""
    bugs = msgspec.json.decode(path.read_bytes())
    first: dict[tuple[str, ...], int] = {}
    for number, bug in enumerate(bugs):
        key = tuple(bug["techniques"])
        if key not in first:
            first[key] = number
            in_a_child(f"reference {number}", path)
        elif not (path.parent / f"wanted{number}.npz").exists():
            source = path.parent / f"wanted{first[key]}.npz"
            (path.parent / f"wanted{number}.npz").symlink_to(source)
        in_a_child(f"bug {number}", path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "bugs.json"
        copy.write_bytes(Path(sys.argv[1]).read_bytes())
        main(copy)
