"""What commands that train share: options for the runtime, and who speaks among many processes."""

from __future__ import annotations

import os
import sys
from typing import Any

from fllmc.cli.opening import Opened
from fllmc.cli.output import say, wants_color
from fllmc.runtime.options import Options


def options_for(found: Opened, **given: Any) -> Options:
    """The runtime's options for what was opened."""
    color = wants_color(sys.stderr)
    return Options(name=found.name, color=color, sources=found.sources, **given)


def tell_once(text: str) -> None:
    """Say a line, once among the processes that a launcher started."""
    if os.environ.get("RANK", "0") == "0":
        say(text)
