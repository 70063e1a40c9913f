"""A run learns, tells what it does, and stops in an orderly way."""

import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fllmc.driver import compile_spec
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.plan import ALIGNMENT
from fllmc.runtime import metrics, stopping
from fllmc.runtime.metrics import read_metrics
from fllmc.runtime.progress import Report
from fllmc.runtime.sampling import choose
from fllmc.runtime.statuses import INTERNAL, NUMERIC, STOPPED, SUCCESS
from fllmc.runtime.trainer import train
from tests.runtime.small_run import (
    SPEC,
    Made,
    assert_same,
    go,
    made,
    options,
    step_of,
    tensors,
    text,
)


def test_learns_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path, steps=30, evaluate_every=10, log_every=7)
    assert go(run, "a", quiet=False, baseline=True) == SUCCESS
    told = capsys.readouterr()
    records = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 31))
    assert records[-1]["loss"] < records[0]["loss"] - 1
    valid = {r["step"]: r["valid_loss"] for r in records if "valid_loss" in r}
    assert list(valid) == [10, 20, 30] and valid[30] < valid[10]
    for record in records:
        assert record["planned_arena_bytes"] == run.plan.arena_bytes
        assert record["allocated_arena_bytes"] == run.plan.arena_bytes + ALIGNMENT
        assert record["peak_resident_bytes"] > run.plan.arena_bytes
    shown = [line.split()[1] for line in told.err.splitlines() if line.startswith("step")]
    assert shown == ["1", "7", "10", "14", "20", "21", "28", "30"]
    assert f"validation loss {valid[30]:.4f} over 600 held-out tokens" in told.err
    assert "letter pairs" in told.err
    assert told.out.startswith("ab") and len(told.out) == 2 + 8 + 1


def test_the_same_run_twice_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path)
    texts: list[str] = []
    for name in ("a", "b"):
        assert go(run, name) == SUCCESS
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""
    assert_same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, steps=6)
    assert go(run, "a", steps=2) == SUCCESS
    spoiled = run._replace(source=_spoiled(run.source))
    assert go(spoiled, "a", resume=True) == NUMERIC
    told = capsys.readouterr().err
    assert "error[E0807]: step 3: the loss is nan" in told and "step-00000002" in told
    assert step_of(tmp_path / "a") == 2


def _spoiled(source: str) -> str:
    """A schedule whose `train` ends with a loss that is not a number."""
    return source + (
        "\n\n_entries = entries\n\n\ndef entries(rt):\n"
        "    made = dict(_entries(rt))\n    whole = made['train']\n\n"
        "    def train():\n        whole()\n        rt.stored('loss').fill_(math.nan)\n\n"
        "    return {**made, 'train': train}\n"
    )


def test_a_signal_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, checkpoint_every=0)
    written = metrics.MetricsWriter.write

    def write(self: metrics.MetricsWriter, step: int, values: dict[str, float]) -> None:
        written(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(metrics.MetricsWriter, "write", write)
    assert go(run, "a") == STOPPED
    assert step_of(tmp_path / "a") == 3
    monkeypatch.undo()
    assert go(run, "a", resume=True) == SUCCESS
    assert go(run, "b") == SUCCESS
    assert_same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


def test_one_ctrl_c_may_be_heard_twice() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and stop.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_collectives_other_than_planned_are_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    counting = run.source + (
        "\n\n_entries = entries\n\n\ndef entries(rt):\n"
        "    rt.counted[7] = (1, 4)\n    return _entries(rt)\n"
    )
    assert go(run._replace(source=counting), "a") == INTERNAL
    assert "collective 7 made 1 calls of 4" in capsys.readouterr().err
    with pytest.raises(InternalError):
        train(run.plan, counting, options(tmp_path, "b"))


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4]))
    drawn = [choose(logits, 1.0, 5, place) for place in range(4000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert np.abs(shares - np.exp(logits)).max() < 0.03
    assert choose(logits, 1.0, 5, 17) == drawn[17]
    assert choose(logits, 0.0, 5, 17) == 3


def test_the_line_of_a_step() -> None:
    report = Report(50, 2.87, 2.96, 27_900.0, 0.012, 61 << 20, 61 << 20)
    line = "step  50  loss 2.870  valid 2.960  27.9k tok/s  12 ms/step"
    assert report.line(3) == f"{line}  memory 61.0 MiB (planned 61.0 MiB)"


def test_metrics_are_json_lines(tmp_path: Path) -> None:
    assert go(made(tmp_path, steps=2), "a") == SUCCESS
    lines = (tmp_path / "a" / "metrics.jsonl").read_bytes().splitlines()
    assert all(isinstance(msgspec.json.decode(line), dict) for line in lines) and len(lines) == 2


def test_a_run_whose_gradients_are_not_exact_says_so_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_bytes(text())
    spec = tmp_path / "small.fllm"
    spec.write_text(SPEC.replace("microbatches: MICROBATCHES", "compress body.*.mlp"))
    compiled = compile_spec(str(spec), "")
    run = Made(compiled.plan, compiled.source, tmp_path)
    assert go(run, "coded", steps=2, quiet=False) == SUCCESS
    told = capsys.readouterr().err
    assert "compress body.*.mlp: gradients are not exact" in told.partition("step")[0]
