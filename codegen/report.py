"""The report: one self-contained page about a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2

from fllmc.ir.plan import Plan


def report_html(name: str, plan: Plan, levels: Mapping[str, str]) -> str:
    """The page as text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    template = environment.get_template("report.html.j2")
    return template.render(name=name, plan=plan, levels=levels)
