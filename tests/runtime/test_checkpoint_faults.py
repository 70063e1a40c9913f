"""No failing call and no kill, wherever it strikes, costs the last checkpoint."""

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.runtime.checkpoint import files
from fllmc.runtime.checkpoint.load import open_latest
from tests.runtime.stored import TENSORS, same, save_alone


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_no_failing_call_costs_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save_alone(tmp_path, 1)
    owner = os if call == "fsync" else Path
    real = getattr(owner, call)
    total = 0
    for fail_at in range(20):
        calls = itertools.count()

        def failing(*args: Any, at: int = fail_at, n: Any = calls, **rest: Any) -> Any:
            if next(n) == at:
                raise OSError(5, "Input/output error")
            return real(*args, **rest)

        monkeypatch.setattr(owner, call, failing)
        try:
            save_alone(tmp_path, 2)
        except DiagnosticError:
            total += 1
        monkeypatch.setattr(owner, call, real)
        with open_latest(tmp_path).checkpoint as checkpoint:
            same(checkpoint, TENSORS)
        if next(calls) <= fail_at:
            break
    assert total >= 1


ENDLESS = """
import sys, itertools, torch
from pathlib import Path
from fllmc.runtime.checkpoint.manifest import Position
from fllmc.runtime.checkpoint.save import Shard, save
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for step in itertools.count(int(sys.argv[2])):
    value = torch.full((200_000,), float(step))
    shards = [Shard(f"x{i}", value, (200_000,), (0,)) for i in range(2)]
    save(folder, Position(step, step, "p", 1), shards, keep=2)
    print(step, flush=True)
"""


def test_killed_at_any_instant_the_last_checkpoint_loads(tmp_path: Path) -> None:
    rng = random.Random(7)
    reached = 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path), str(reached + 1)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        reported = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        reported = max([reported, *map(int, rest.split())])
        latest = open_latest(tmp_path)
        with latest.checkpoint as checkpoint:
            reached = checkpoint.position.step
            assert reached >= reported and latest.skipped == ()
            for name in ("x0", "x1"):
                assert checkpoint.read(name).eq(float(reached)).all()
    save_alone(tmp_path, reached + 1, keep=1)
    assert len(os.listdir(tmp_path)) == 1, "what kills left behind is cleared"


# Forks come from a server without threads of other libraries, which this process may have.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def doomed_save(folder: Path, deadly: int) -> None:
    """In a child: save steps 2 and 3, keeping one, and end at the given change to the disk."""
    calls = itertools.count()

    def guard(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def guarded(*args: Any, **rest: Any) -> Any:
            if next(calls) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **rest)

        setattr(owner, name, guarded)

    for owner, names in (
        (Path, ["mkdir", "rename"]),
        (os, ["fsync", "unlink", "rmdir"]),
        (files, ["_write"]),
        (shutil, ["rmtree"]),
    ):
        for name in names:
            guard(owner, name)
    for step in (2, 3):
        save_alone(folder, step, keep=1)
    os._exit(0)


def test_killed_at_each_change_to_the_disk_a_whole_checkpoint_is_left(tmp_path: Path) -> None:
    steps: list[int] = []
    for deadly in range(200):
        folder = tmp_path / str(deadly)
        save_alone(folder, 1)
        child = SERVER.Process(target=doomed_save, args=(folder, deadly))
        child.start()
        child.join()
        latest = open_latest(folder)
        with latest.checkpoint as checkpoint:
            same(checkpoint, TENSORS)
            steps.append(checkpoint.position.step)
        assert latest.skipped == ()
        shutil.rmtree(folder)
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0:
            break
    assert steps == sorted(steps) and set(steps) == {1, 2, 3} and len(steps) > 30
