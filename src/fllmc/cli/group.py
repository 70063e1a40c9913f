"""The group of commands: each is imported when it is used, and no fault of one is a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import click

from fllmc import __version__
from fllmc.cli.exits import INTERRUPTED
from fllmc.cli.failures import failed

COMMANDS: Final[Mapping[str, Mapping[str, str]]] = {
    "Start": {
        "quickstart": "Train a small model on this machine, from spec to text sample.",
        "doctor": "Say what this machine can do.",
    },
    "Write": {
        "check": "Report what is wrong with a spec.",
        "fmt": "Lay out specs in the one canonical form.",
        "fix": "Put right what is surely meant otherwise.",
        "show": "Print a spec, its defaults written out.",
        "lsp": "Serve an editor on stdin and stdout.",
        "explain": "Explain a diagnostic code.",
    },
    "Compile": {
        "compile": "Compile a spec for a mesh and say what was decided.",
        "inspect": "Show what an artifact holds.",
        "opt": "Run passes on a program and print the result.",
        "pipeline": "Show a pipeline schedule, its bubble and its memory.",
    },
    "Run": {
        "run": "Train what an artifact or a spec describes.",
        "resume": "Go on with a run from its newest checkpoint.",
        "merge": "Add the low-rank updates of a run to its weights.",
    },
    "Interchange": {
        "import": "Make a checkpoint of a Hugging Face folder.",
        "export": "Write a checkpoint as a Hugging Face folder.",
        "ckpt": "Check a Hugging Face folder against a spec's names.",
    },
}


def settings(ctx: click.Context, option: click.Parameter, value: object) -> None:
    """Keep an option of every command in the context, where `output` finds it."""
    ctx.meta[f"fllmc.{option.name}"] = value


EVERYWHERE: Final[tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]] = (
    (
        ("--format",),
        {"type": click.Choice(["text", "json", "sarif"]), "help": "Form of diagnostics on stderr."},
    ),
    (
        ("--color",),
        {
            "type": click.Choice(["auto", "always", "never"]),
            "help": "auto: on a terminal, unless NO_COLOR is set.",
        },
    ),
    (("--debug",), {"is_flag": True, "help": "Show tracebacks of internal faults."}),
)
"""The options of every command."""


class Command(click.Command):
    """A command that turns what goes wrong into words and an exit status.

    Its function gives the exit status, or None for success.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for names, how in EVERYWHERE:
            self.params.append(click.Option(names, expose_value=False, callback=settings, **how))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an exception becomes an exit status."""
        try:
            ctx.exit(self.status(ctx))
        finally:
            if ctx.meta.get("fllmc.format") == "sarif":
                from fllmc.cli.sarif import show_log

                show_log(ctx)

    def status(self, ctx: click.Context) -> int:
        """The exit status of the command's function, whatever it raises."""
        try:
            return super().invoke(ctx) or 0
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            return INTERRUPTED
        except BrokenPipeError:  # what reads our output has gone
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (nothing more is written)
            return 0
        except Exception as error:
            if ctx.meta.get("fllmc.debug"):
                raise
            return failed(error)


class LazyGroup(click.Group):
    """Knows its commands by name and one line; `fllmc.cli.NAME_command` holds each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, as the help groups them."""
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in self.list_commands(ctx):
            return None
        return import_module(f"fllmc.cli.{cmd_name}_command").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name when there is none such."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from fllmc.ir.diagnostics import near

            found = near(args[0], self.list_commands(ctx))
            hint = f" Did you mean '{found}'?" if found and found not in error.message else ""
            raise click.UsageError(error.message + hint, ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, without importing any."""
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:10}", text) for name, text in section.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="fllmc COMMAND --help says more about each.",
)
@click.version_option(__version__, "-V", "--version", message="fllmc %(version)s")
def fllmc() -> None:
    """A declarative compiler for training large models.

    \b
    fllmc quickstart                      train a small model, here, in a minute
    fllmc check my_model.fllm             what is wrong with a spec
    fllmc compile llama3_8b --mesh 8x4    plan 32 devices on this one
    """
