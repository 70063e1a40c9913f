"""Text to tree to typed model program: grammar, spans, names, types, formatter, library loader."""

from fllmc.frontend.checking import Checked, check
from fllmc.frontend.loading import SpecError, load, load_spec
from fllmc.frontend.lowering.runs import lower

__all__ = ["Checked", "SpecError", "check", "load", "load_spec", "lower"]
