"""Minimal specs on which a pass was wrong once, found with `random_specs`."""

from __future__ import annotations

from collections.abc import Mapping

from tests.specs.random_specs import Drawn

FOUND: Mapping[str, Drawn] = {}
