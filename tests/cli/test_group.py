"""The group: help without imports, exit statuses, faults without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from fllmc.cli import exits
from fllmc.cli.group import COMMANDS, Command, fllmc
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.program import Program
from fllmc.passes.base import Context
from fllmc.passes.inline import Inline
from tests.cli.running import run

NAMES = [name for section in COMMANDS.values() for name in section]
EVERYWHERE = ["--format", "--color", "--debug"]
TRAINING = ["--steps", "--device", "--threads", "--keep", "--quiet", "-q"]
DUMPS = ["-n", "--dry-run", "--dump-ir", "--dump-after"]
PARTS = ["--memory", "--collectives", "--placement", "--frozen", "--decisions"]
OPTIONS = {
    "quickstart": ["--mesh", "--steps"],
    "doctor": ["--json"],
    "check": ["--set", "--json"],
    "fmt": ["--check", "--diff"],
    "fix": ["--diff"],
    "show": ["--resolved", "--train"],
    "lsp": [],
    "explain": ["--json"],
    "compile": [
        "--mesh",
        "--target",
        "--set",
        "--json",
        *DUMPS,
        "-o",
        "--output",
        "-v",
        "--verbose",
    ],
    "inspect": ["--mesh", "--set", "--json", "--level", "--schedule", "--pipeline", *PARTS],
    "pipeline": [
        *(
            "--chunks",
            "--exact",
            "--json",
            "--late",
            "--memory",
            "--micros",
            "--ranks",
            "--svg",
            "--table",
        ),
        *("--times", "--transfer"),
    ],
    "opt": ["--passes", "--mesh", "-v", "--verbose"],
    "run": ["--mesh", "--set", "-o", "--output", *TRAINING],
    "resume": ["--mesh", *TRAINING],
    "merge": ["--out", "--undo"],
    "import": ["-o", "--output", "--set"],
    "export": ["-o", "--output", "--dtype", "--shard-gb"],
    "ckpt": ["--set", "--json"],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_options_of_a_command_are_these(name: str) -> None:
    """Scripts rely on them: one is renamed or removed only on purpose."""
    context = click.Context(fllmc)
    command = fllmc.get_command(context, name)
    assert command is not None
    options = [p for p in command.params if isinstance(p, click.Option)]
    found = [text for option in options for text in option.opts]
    assert sorted(found) == sorted([*OPTIONS[name], *EVERYWHERE])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage:")


def test_help_names_every_command_and_imports_none() -> None:
    probe = (
        "import sys; from fllmc.cli.group import fllmc; "
        "fllmc.main(['--help'], standalone_mode=False); "
        "print([m for m in sys.modules if m.endswith('_command') or m == 'msgspec'])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name}" in done.stdout for name in NAMES)
    assert done.stdout.splitlines()[-1] == "['msgspec']" or done.stdout.endswith("[]\n")


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    done = run("chek")
    assert done.exit_code == exits.USAGE
    assert "Did you mean 'check'?" in done.stderr


def test_statuses_stand_in_the_documentation(root: Path) -> None:
    text = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    for status, meaning in exits.MEANINGS.items():
        assert f"| {status} | {meaning} |" in text


def test_an_internal_fault_leaves_a_file_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def fails() -> None:
        raise InternalError("the impossible happened")

    command = Command("fails", callback=fails)
    monkeypatch.setattr(type(fllmc), "get_command", lambda *_: command)
    done = run("fails")
    assert done.exit_code == exits.INTERNAL
    assert "internal error: the impossible happened" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in (tmp_path / "fllmc-fault-1.txt").read_text()


def test_a_pass_that_fails_leaves_the_program_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def fails(self: Inline, program: Program, cx: Context) -> Program:
        raise ValueError("impossible")

    monkeypatch.setattr(Inline, "run", fails)
    done = run("compile", "quickstart", "-n")
    assert done.exit_code == exits.INTERNAL
    assert "internal error: pass inline failed: ValueError: impossible" in done.stderr
    monkeypatch.undo()
    left = tmp_path / "fllmc-fault-1.fir"
    again = run("opt", "--passes", "inline", str(left))
    assert again.exit_code == 0
    assert again.stdout == run("opt", "quickstart", "--passes", "inline").stdout


def test_ctrl_c_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    command = Command("waits", callback=interrupted)
    monkeypatch.setattr(type(fllmc), "get_command", lambda *_: command)
    assert run("waits").exit_code == exits.INTERRUPTED


def test_colour_is_for_terminals_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert "\x1b[" not in run("check", "nothere").stderr
    assert "\x1b[" in run("check", "nothere", "--color", "always").stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run("check", "nothere").stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run("check", "nothere").stderr
