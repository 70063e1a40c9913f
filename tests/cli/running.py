"""Running commands in this process, with what they print kept apart."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from fllmc.cli.group import fllmc


def run(*arguments: str, given: str | None = None) -> Result:
    """The command's outcome; `stdout` and `stderr` are apart."""
    return CliRunner().invoke(fllmc, list(arguments), input=given)


def document(*arguments: str) -> dict[str, Any]:
    """The JSON document that the command prints; the command must succeed."""
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)
