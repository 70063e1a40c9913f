"""The command line. `main` is what the commands `fllmc` and `python -m fllmc` run.

Each command stands in a file of its own, `NAME_command.py`, which is imported only when the command
is used. Torch is imported only by what runs a model.
"""

from __future__ import annotations

import gc

GARBAGE = 100_000
"""Objects between collections. Commands that take 0.2 s make little garbage; looking for it while
modules are imported takes a tenth of that."""


def main() -> int:
    """Run the command that the process's arguments spell; the exit status."""
    gc.set_threshold(GARBAGE)
    from fllmc.cli.group import fllmc

    status = fllmc.main(standalone_mode=True)
    return status if isinstance(status, int) else 0


__all__ = ["main"]
