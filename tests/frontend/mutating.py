"""Specs changed at random: as one types, and as a file is mangled. The same seed, the same text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

from fllmc.frontend.parser import Parser

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted((ROOT / "specs").rglob("*.fllm"))
PIECE = re.compile(r'\s+|#[^\n]*|"[^"\n]*"|\w+|->|.', re.DOTALL)
STRANGE = ["", "\x00", "é", "→", '"', "#", "{", "}", "((((", "]", "1e999", "0", "-", "in", "over"]


def pieces(text: str) -> list[str]:
    """The text in words, signs and blanks."""
    return PIECE.findall(text)


def mutated(text: str, others: list[str], chance: Random) -> str:
    """The text with one to four changes; `others` are words of other specs."""
    parts = pieces(text)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if parts:
            _change(parts, others, chance)
    return "".join(parts)


def _change(parts: list[str], others: list[str], chance: Random) -> None:
    place = chance.randrange(len(parts))
    match chance.randrange(9):
        case 0:
            del parts[place]
        case 1:
            parts.insert(place, parts[place])
        case 2:
            parts[place] = chance.choice(others)
        case 3:
            parts.insert(place, chance.choice(others))
        case 4:
            parts[place] = chance.choice(STRANGE)
        case 5:
            other = chance.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        case 6:
            del parts[place : place + chance.randrange(1, 30)]
        case 7:
            parts[place:] = parts[place : place + 200] if chance.random() < 0.3 else parts[place:]
        case _:
            word = parts[place]
            cut = chance.randrange(len(word))
            parts[place] = word[:cut] + chance.choice(others)[:2] + word[cut + 1 :]


def mutations(count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """Mutated specs, each with the path of the one that it was."""
    chance = Random(seed)
    texts = {path: path.read_text(encoding="utf-8") for path in SPECS}
    others = sorted({part for text in texts.values() for part in pieces(text) if part.strip()})
    for _ in range(count):
        path = chance.choice(SPECS)
        yield path, mutated(texts[path], others, chance)


def mangled(text: str, chance: Random) -> str:
    """The text's own tokens and comments with other blanks, line ends and more comments between."""
    parser = Parser(text, "", lambda rule, parts, span: None)
    parser.run()
    every = sorted([*parser.tokens, *parser.comments], key=lambda t: t.span.start)
    out: list[str] = []
    for token, after in pairwise(every):
        out.append(token.text)
        apart = token.span.end < after.span.start
        if token.kind == "COMMENT":
            out.append("\n" * chance.randrange(1, 4))
        elif apart or (not _wordy(token.text) and not _wordy(after.text)):
            out.append(_gap(apart, chance))
    return "".join(out) + "\n" * chance.randrange(3)


def _wordy(text: str) -> bool:
    return text[:1].isalnum() or text[-1:].isalnum() or text[:1] in '_"#<>=!-'


def _gap(needed: bool, chance: Random) -> str:
    roll = chance.random()
    if roll < 0.02:
        return " # said\n"
    if roll < 0.2:
        return "\n" + " " * chance.randrange(9)
    if roll < 0.3:
        return "\t "
    return " " if needed or roll < 0.4 else ""
