"""Options that several commands take, and what their texts mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

MESH = "Mesh of devices: 8x4, or data=8,tensor=4; the last axis is innermost."


def mesh_option(function: F) -> F:
    """`--mesh 8x4`."""
    return click.option("--mesh", default="", metavar="MESH", help=MESH)(function)


def target_option(function: F) -> F:
    """`--target h100`."""
    words = "Device to plan for: one that ships, or a .fllm file; else the smallest that fits."
    return click.option("--target", default="", metavar="DEVICE", help=words)(function)


def set_option(function: F) -> F:
    """`--set KEY=VALUE`, any number of times."""
    words = "Set a value of the spec, such as dims.layers=2; may be repeated."
    return click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help=words)(function)


def json_option(function: F) -> F:
    """`--json`."""
    words = "Print one JSON document instead of text."
    return click.option("--json", "as_json", is_flag=True, help=words)(function)


def overrides(sets: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping; the last of a key counts."""
    found: dict[str, str] = {}
    for text in sets:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise click.BadParameter(f"'{text}' is not KEY=VALUE", param_hint="--set")
        found[key.strip()] = value.strip()
    return found


def training_options(function: F) -> F:
    """What `run` and `resume` take."""
    for option in (
        click.option("--quiet", "-q", is_flag=True, help="Show no progress."),
        click.option("--keep", default=3, show_default=True, help="Checkpoints kept; 0: all."),
        click.option("--threads", default=0, help="Threads of a process; else by size."),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Where to run; auto: on GPUs where there are enough.",
        ),
        click.option(
            "--steps", default=0, type=click.IntRange(min=0), help="Stop after this many steps."
        ),
    ):
        function = option(function)
    return function
