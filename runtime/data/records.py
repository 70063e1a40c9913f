"""JSON lines: one document a line, as text, as tokens or as the turns of a conversation.

Further fields that the data section names as `columns` are numbers: one for the whole document, or
for `tokens` a list with one for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import data_errors, errors
from fllmc.runtime.data.documents import Written
from fllmc.runtime.data.tokenizers import Tokenizer, Tokens

SUFFIX = ".jsonl"
KINDS = ("text", "tokens", "messages")


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class Record(msgspec.Struct, frozen=True):
    """One line: exactly one of its first three fields is there."""

    place: str
    text: str | None
    tokens: tuple[int, ...] | None
    messages: tuple[Message, ...] | None
    numbers: dict[str, float | list[float]]

    def said(self) -> str:
        """All text of the record, for training a tokenizer."""
        return self.text or "\n".join(turn.content for turn in self.messages or ())


def read_records(
    paths: Sequence[Path], columns: Sequence[str], span: Span = NOWHERE
) -> list[Record]:
    """The records of all files in order; blank lines are none."""
    found: list[Record] = []
    for path in paths:
        for number, line in enumerate(_content(path, span).split(b"\n"), 1):
            if line.strip():
                try:
                    found.append(_record(f"{path}:{number}", line, columns))
                except _Refused as error:
                    place = f"{path}:{number}"
                    wrong = data_errors.BadRecord(span, place, str(error))
                    raise DiagnosticError(wrong) from error
    return found


class _Refused(Exception):
    """Why a line is no record."""


def _content(path: Path, span: Span) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(errors.SourceUnreadable(span, str(path), reason)) from error


def _record(place: str, line: bytes, columns: Sequence[str]) -> Record:
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        given = {kind: fields.get(kind) for kind in KINDS}
        text = msgspec.convert(given["text"], str | None)
        tokens = msgspec.convert(given["tokens"], tuple[int, ...] | None)
        messages = msgspec.convert(given["messages"], tuple[Message, ...] | None)
        numbers = {
            name: msgspec.convert(fields[name], float | list[float])
            for name in columns
            if name in fields
        }
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Refused(str(error)) from error
    if sum(each is not None for each in (text, tokens, messages)) != 1:
        raise _Refused(f"it needs exactly one of {', '.join(f'`{kind}`' for kind in KINDS)}")
    for name in columns:
        if name not in numbers:
            raise _Refused(f"it has no number `{name}`, which `columns` names")
        many = numbers[name]
        if isinstance(many, list) and (tokens is None or len(many) != len(tokens)):
            wanted = (
                f"{len(tokens)} tokens" if tokens is not None else "a document without `tokens`"
            )
            raise _Refused(f"`{name}` has {len(many)} numbers for {wanted}")
    if tokens is not None and any(not 0 <= token < 2**32 for token in tokens):
        raise _Refused("a token is a whole number from 0 to 2^32 - 1")
    return Record(place, text, tokens, messages, numbers)


class Turns(msgspec.Struct, frozen=True):
    """How a conversation is written: what opens and closes a turn, and whose turns are learned.

    `{role}` in `open` and `close` stands for the role. `begin` opens the conversation.
    """

    begin: str
    open: str
    close: str
    learn: tuple[str, ...]

    def pieces(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """(text, whether it is to be learned), in order."""
        if self.begin:
            yield self.begin, False
        for turn in messages:
            learned = turn.role in self.learn
            yield self.open.replace("{role}", turn.role), False
            yield turn.content + self.close.replace("{role}", turn.role), learned


def written(
    record: Record, tokenizer: Tokenizer, turns: Turns, end: int | None, columns: Sequence[str]
) -> Written:
    """The record as tokens. What is learned of a conversation are its chosen turns."""
    counts: npt.NDArray[np.float32] | None = None
    if record.tokens is not None:
        tokens: Tokens = np.asarray(record.tokens, np.uint32)
    elif record.messages is not None:
        pieces = list(turns.pieces(record.messages))
        encoded = [tokenizer.encode(text.encode()) for text, _ in pieces]
        tokens = np.concatenate([np.empty(0, np.uint8), *encoded])
        weights = [np.float32(learned) for _, learned in pieces]
        counts = np.repeat(np.asarray(weights, np.float32), [len(each) for each in encoded])
    else:
        tokens = tokenizer.encode((record.text or "").encode())
    numbers = {name: _spread(record.numbers[name], len(tokens)) for name in columns}
    if end is not None and len(tokens):
        tokens = np.append(tokens.astype(np.uint32), np.uint32(end))
        numbers = {name: np.append(each, each[-1:]) for name, each in numbers.items()}
        # A conversation ends as its last turn does.
        counts = None if counts is None else np.append(counts, counts[-1:])
    return Written(tokens, counts, numbers)


def _spread(value: float | list[float], count: int) -> npt.NDArray[np.float32]:
    if isinstance(value, list):
        return np.asarray(value, np.float32)
    return np.full(count, value, np.float32)
