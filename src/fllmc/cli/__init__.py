"""The command line. `main` is what the commands `fllmc` and `python -m fllmc` run.

Each command stands in a file of its own, `NAME_command.py`, which is imported only when the command
is used. Torch is imported only by what runs a model.
"""

from __future__ import annotations

from fllmc.cli.group import fllmc


def main() -> int:
    """Run the command that the process's arguments spell; the exit status."""
    status = fllmc.main(standalone_mode=True)
    return status if isinstance(status, int) else 0


__all__ = ["fllmc", "main"]
