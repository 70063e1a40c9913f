"""`data` sections."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.library import SHIPPED
from fllmc.frontend.section_errors import OutOfRange, UnknownSection
from fllmc.frontend.sections.records import Record
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.settings import Chat, Data, FillMiddle, Pack
from fllmc.ir.span import Span

BYTES = 256
PACKS: tuple[Pack, ...] = ("stream", "documents", "whole")


Sections = Mapping[str, tuple[ast.Data, str]]
"""Data sections with their files, by the names that a section may call them by."""


class DataSection(Struct, frozen=True):
    """A read section. `data.batch` and `data.seq` are 0 when `dims` must give them.

    `data.vocab` is 0 when only the tokenizer's file knows it. Places are of the fields.
    """

    data: Data
    name: Span
    batch: Span
    seq: Span
    tokenizer: Span


def read_data(
    section: ast.Data, file: str, others: Sections = MappingProxyType({})
) -> tuple[DataSection, tuple[Diagnostic, ...]]:
    """The section's settings, and what is wrong with it. `others` may be parts of a mixture."""
    name = section.name
    record = Record(f"data `{name.text}`", name.span, section.fields)
    data = _source(record, section, file)
    if not data.source:
        data = _mixture(record, data, others)
    tokenizer, vocab = _tokenizer(record)
    data = structs.replace(
        data,
        batch=record.count("batch", low=1),
        seq=record.count("seq", low=1),
        tokenizer=tokenizer,
        vocab=vocab,
        seed=record.count("seed"),
    )
    places = (
        name.span,
        record.place_of("batch"),
        record.place_of("seq"),
        record.place_of("tokenizer"),
    )
    return DataSection(data, *places), record.done()


def _source(record: Record, section: ast.Data, file: str) -> Data:
    """The section's source, empty for a mixture, and how it alone is read."""
    folder = "" if file.startswith(SHIPPED) else posixpath.dirname(file)
    value = record.value("source", '"builtin:pydocs"')
    match value:
        case ast.String(value=source):
            pass
        case None | ast.Call(function=ast.Ref(name="mix")):
            source = ""
        case _:
            record.wrong("source", value, "a text in quotes, or `mix(NAME: WEIGHT, ...)`", ("mix",))
            source = ""
    data = Data(section.name.text, source, 0, 0, folder=folder, span=section.span)
    if not source:
        return data
    return structs.replace(
        data,
        holdout=record.number("holdout", data.holdout, 0.0, 0.9),
        pack=record.word("pack", PACKS, "stream"),
        end=mark(record, "end", None),
        stored=record.word("stored", ("u16", "u32"), "u16"),
        columns=record.names("columns"),
        chat=_chat(record),
        fim=_fim(record),
    )


def _mixture(record: Record, data: Data, others: Sections) -> Data:
    """The sources of `mix(NAME: WEIGHT, ...)`."""
    value = record.fields["source"].value if "source" in record.fields else None
    if not isinstance(value, ast.Call):
        return data
    parts: list[Data] = []
    weights: list[float] = []
    given = record.arguments(value, "mix")
    for name in given.fields:
        weight = given.number(name)
        if name not in others:
            where = given.fields[name].key.span
            given.found.append(UnknownSection(where, name, tuple(others), "data section"))
            continue
        section, file = others[name]
        part, found = read_part(section, file)
        given.found += found
        if weight <= 0:
            where = f"`{name}` of `mix`"
            given.found.append(
                OutOfRange(given.place_of(name), where, "more than 0", f"{weight:g}")
            )
        parts.append(part)
        weights.append(weight)
    if not parts and not given.found:
        given.wrong("source", value, "`mix(NAME: WEIGHT, ...)` of at least one data section")
    record.take(given)
    columns = tuple(dict.fromkeys(name for part in parts for name in part.columns))
    packs = {part.pack for part in parts}
    pack = "stream" if packs <= {"stream"} else "documents"
    return structs.replace(
        data, parts=tuple(parts), weights=tuple(weights), columns=columns, pack=pack, holdout=0.0
    )


def read_part(section: ast.Data, file: str) -> tuple[Data, tuple[Diagnostic, ...]]:
    """A section as part of a mixture, which says how long samples are and what encodes them."""
    name = section.name
    record = Record(f"data `{name.text}`", name.span, section.fields)
    data = _source(record, section, file)
    if not data.source:
        record.wrong("source", section.fields[0].value, "a text in quotes in a part of a mixture")
    data = structs.replace(data, seed=record.count("seed"))
    for key in ("batch", "seq", "tokenizer"):
        record.has(key)  # of a run of its own
    return data, record.done()


def mark(record: Record, key: str, default: int | str | None) -> int | str | None:
    """A token, as its number or as text."""
    value = record.value(key)
    match value:
        case None:
            return default
        case ast.String(value=text) if text:
            return text
        case ast.Number(value=int(number)) if number >= 0:
            return number
        case _:
            record.wrong(key, value, "a token: its number, or its text in quotes")
            return default


def _chat(record: Record) -> Chat:
    default = Chat()
    given = record.call("chat", ("turns",))
    if given is None:
        return default
    begin, open_, close = (
        given.text(key, getattr(default, key)) for key in ("begin", "open", "close")
    )
    chat = Chat(begin, open_, close, given.names("learn") or default.learn)
    record.take(given)
    return chat


def _fim(record: Record) -> FillMiddle | None:
    given = record.call("fim", ("fim",))
    if given is None:
        return None
    default = FillMiddle()
    rate, spm = (given.number(key, getattr(default, key), 0.0, 1.0) for key in ("rate", "spm"))
    marks = {key: mark(given, key, getattr(default, key)) for key in ("prefix", "suffix", "middle")}
    record.take(given)
    return structs.replace(default, rate=rate, spm=spm, **marks)


def _tokenizer(record: Record) -> tuple[str, int]:
    """The tokenizer as the settings write it, and the number of its tokens, 0 if unknown."""
    value = record.value("tokenizer")
    match value:
        case None | ast.Ref(name="bytes") | ast.String(value="bytes"):
            return "bytes", BYTES
        case ast.Ref(name="none"):
            return "none", 0
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
            wanted = f'`bytes`, `none`, `bpe(VOCAB)` with more than {BYTES} tokens, or a file "..."'
            record.wrong("tokenizer", value, wanted, ("bytes", "none", "bpe"))
            return "bytes", BYTES
