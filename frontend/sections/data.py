"""`data` sections."""

from __future__ import annotations

import posixpath

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.library import SHIPPED
from fllmc.frontend.sections.records import Record
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.settings import Data
from fllmc.ir.span import Span

BYTES = 256


class DataSection(Struct, frozen=True):
    """A read section. `data.batch` and `data.seq` are 0 when `dims` must give them.

    `data.vocab` is 0 when only the tokenizer's file knows it. Places are of the fields.
    """

    data: Data
    name: Span
    batch: Span
    seq: Span
    tokenizer: Span


def read_data(section: ast.Data, file: str) -> tuple[DataSection, tuple[Diagnostic, ...]]:
    """The section's settings, and what is wrong with it."""
    name = section.name
    record = Record(f"data `{name.text}`", name.span, section.fields)
    source = record.text("source", example='"builtin:pydocs"')
    tokenizer, vocab = _tokenizer(record)
    data = Data(
        name.text,
        source,
        record.count("batch", low=1),
        record.count("seq", low=1),
        tokenizer,
        vocab,
        record.number("holdout", 0.1, 0.0, 0.9),
        record.count("seed"),
        record.word("pack", ("stream", "documents"), "stream"),
        "" if file.startswith(SHIPPED) else posixpath.dirname(file),
        section.span,
    )
    places = (
        name.span,
        record.place_of("batch"),
        record.place_of("seq"),
        record.place_of("tokenizer"),
    )
    return DataSection(data, *places), record.done()


def _tokenizer(record: Record) -> tuple[str, int]:
    """The tokenizer as the settings write it, and the number of its tokens, 0 if unknown."""
    value = record.value("tokenizer")
    match value:
        case None | ast.Ref(name="bytes") | ast.String(value="bytes"):
            return "bytes", BYTES
        case ast.Call(
            function=ast.Ref(name="bpe"),
            arguments=(
                ast.Argument(key=None | ast.Name(text="vocab"), value=ast.Number(value=int(size))),
            ),
        ) if size > BYTES:
            return f"bpe:{size}", size
        case ast.String(value=path) if path.startswith("bpe:") and path[4:].isdecimal():
            return path, int(path[4:])
        case ast.String(value=path) if path:
            return path, 0
        case _:
            wanted = f'`bytes`, `bpe(VOCAB)` with more than {BYTES} tokens, or a file "..."'
            record.wrong("tokenizer", value, wanted, ("bytes", "bpe"))
            return "bytes", BYTES
