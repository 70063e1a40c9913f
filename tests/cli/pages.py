"""Pages of diagnostic codes, read apart and carried out: their specs, commands and golden texts."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from fllmc.cli import output
from fllmc.cli.catalogue import PAGES
from fllmc.cli.group import fllmc
from fllmc.ir.diagnostics import Diagnostic, explanation
from fllmc.ir.render import ordered, render

SECTIONS = ("Why", "Wrong", "Right", "See also")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"[EW]0\d{3}")


class Page(NamedTuple):
    """A page's head and its sections, by title."""

    head: str
    sections: dict[str, str]

    def block(self, section: str, *kinds: str) -> str:
        """The text between the fences of the section's first block of a kind, or nothing."""
        for kind, text in FENCE.findall(self.sections.get(section, "")):
            if kind in kinds:
                return text
        return ""

    def source(self, section: str) -> tuple[str, str]:
        """The name and the text of the section's file."""
        kind = "fir" if self.block(section, "fir") else "fllm"
        return f"{section.lower()}.{kind}", self.block(section, kind)

    def command(self, section: str) -> list[str]:
        """The lines of the section's console that are typed; `Right` may leave them to `Wrong`."""
        typed = [
            line.removeprefix("$ ")
            for line in self.block(section, "console").splitlines()
            if line.startswith("$ ")
        ]
        if typed or section == "Wrong":
            return typed
        return [self.command("Wrong")[-1].replace("wrong.", "right.")]

    def told(self) -> str:
        """The golden text: what the console prints behind what is typed."""
        return self.block("Wrong", "console").rpartition("$ ")[2].partition("\n")[2]


def path_of(code: str) -> Path:
    """Where a code's page stands."""
    return PAGES / f"{code}.md"


def page(code: str) -> Page:
    """A code's page; empty if there is none."""
    path = path_of(code)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    head, *rest = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return Page(head, dict(zip(rest[::2], rest[1::2], strict=True)))


def head_of(kind: type[Diagnostic]) -> str:
    """How a code's page begins: with what the class says."""
    return f"# {kind.severity} {kind.code}\n\n{explanation(kind)}\n\n"


def rewrite(kind: type[Diagnostic], told: str) -> None:
    """Put the head and the golden text of a page as they should be."""
    path = path_of(kind.code)
    text = path.read_text(encoding="utf-8")
    body = text[text.index("## Why") :]
    console = re.compile(r"(```console\n(?:\$ [^\n]*\n)+)[^$]*?(```)", re.DOTALL)
    wrong = body.index("## Wrong")
    body = body[:wrong] + console.sub(lambda m: m[1] + told + m[2], body[wrong:], count=1)
    path.write_text(head_of(kind) + body, encoding="utf-8")


class Heard(NamedTuple):
    """What a command reported."""

    found: tuple[Diagnostic, ...]
    told: str
    status: int


def carried_out(found: Page, section: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """What the last command of a section reports, in a folder with the section's file."""
    monkeypatch.chdir(folder)
    heard: list[Diagnostic] = []
    texts: list[str] = []

    def hear(diagnostics: object, sources: object, color: bool = False) -> str:
        heard.extend(diagnostics)  # type: ignore[arg-type]
        texts.append(render(diagnostics, sources))  # type: ignore[arg-type]
        return texts[-1]

    monkeypatch.setattr(output, "render", hear)
    for each in (section, "Wrong"):
        name, text = found.source(each)
        if text:
            Path(name).write_text(text, encoding="utf-8")
    *before, last = found.command(section)
    for line in before:
        subprocess.run(line, shell=True, check=True)
    done = CliRunner().invoke(fllmc, [*shlex.split(last)[1:], "--color", "never"])
    return Heard(ordered(heard), "\n".join(texts), done.exit_code)
