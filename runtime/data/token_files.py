"""Files of token numbers, mapped into memory: raw `.bin`, `.npy`, and `.bin` with an `.idx` index.

An index is Megatron-LM's, version 1: magic `MMIDIDX\\0\\0`, u64 version, u8 dtype, u64 sequences,
u64 documents + 1, then i32 lengths and i64 byte offsets of the sequences, and the i64 number of
the sequence that each document begins with.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import data_errors
from fllmc.runtime.data.documents import Documents, Joined, Places
from fllmc.runtime.data.tokenizers import Tokens

SUFFIXES = (".bin", ".npy")
INDEX = ".idx"
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
WHOLE = 1 << 30
BLOCK = 1 << 20


def open_tokens(
    paths: Sequence[Path], stored: str, end: int | None, apart: bool, span: Span = NOWHERE
) -> Documents:
    """The tokens of all files; `stored` is the dtype of raw ones, such as `u16`.

    Documents end behind each token `end` where that is given and `apart` asks for them, else where
    an index or the file says so.
    """
    arrays: list[Tokens] = []
    ends: list[Places] = []
    for path in paths:
        tokens, documents = _open(path, stored, span)
        if not len(tokens):
            continue
        if end is not None and apart:
            documents = _ends(tokens, end)
        begin = sum(len(each) for each in arrays)
        ends.append(documents + begin)
        arrays.append(tokens)
    return Documents(Joined(arrays), np.concatenate([np.empty(0, np.int64), *ends]))


def _open(path: Path, stored: str, span: Span) -> tuple[Tokens, Places]:
    """A file's tokens, and where documents end in it."""
    index = path.with_suffix(INDEX)
    try:
        if path.suffix == ".npy":
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
            if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
                reason = (
                    f"it holds {tokens.dtype} {list(tokens.shape)}, not a list of whole numbers"
                )
                raise DiagnosticError(data_errors.BadTokenFile(span, str(path), reason))
        elif index.is_file():
            return _indexed(path, index, span)
        else:
            tokens = _mapped(path, np.dtype(f"<u{int(stored[1:]) // 8}"), span)
    except (OSError, ValueError, EOFError) as error:
        raise DiagnosticError(data_errors.BadTokenFile(span, str(path), str(error))) from error
    return tokens, np.array([len(tokens)], np.int64)


def _mapped(path: Path, dtype: np.dtype[Any], span: Span) -> Tokens:
    size = path.stat().st_size
    if size % dtype.itemsize:
        reason = f"{size} bytes are not whole tokens of {dtype.itemsize} bytes"
        raise DiagnosticError(data_errors.BadTokenFile(span, str(path), reason))
    return np.memmap(path, dtype, "r") if size else np.empty(0, dtype)


def _indexed(path: Path, index: Path, span: Span) -> tuple[Tokens, Places]:
    """Tokens by an index: the sequences must follow each other and fill the file."""

    def refused(reason: str) -> DiagnosticError:
        return DiagnosticError(data_errors.BadTokenFile(span, str(index), reason))

    content = index.read_bytes()
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise refused("it does not begin as an index of tokens does")
    _, version, code, count, marks = HEADER.unpack_from(content)
    if version != 1 or code not in DTYPES:
        raise refused(f"version {version} with tokens of kind {code} is not known")
    if len(content) != HEADER.size + count * 12 + marks * 8:
        raise refused(f"it is not of the size that {count} sequences take")
    lengths = np.frombuffer(content, "<i4", count, HEADER.size).astype(np.int64)
    offsets = np.frombuffer(content, "<i8", count, HEADER.size + 4 * count)
    begins = np.frombuffer(content, "<i8", marks, HEADER.size + 12 * count)
    tokens = _mapped(path, np.dtype(DTYPES[code]), span)
    stops = np.cumsum(lengths)
    expected = np.concatenate([[0], stops[:-1]])[:count] * tokens.dtype.itemsize
    if (lengths < 0).any() or not np.array_equal(offsets, expected):
        raise refused("its sequences do not follow each other")
    if int(stops[-1] if count else 0) != len(tokens):
        raise refused(f"it speaks of {int(stops[-1] if count else 0)} tokens, not {len(tokens)}")
    inner = begins[1:]
    if len(inner) and (inner.min() < 1 or inner.max() > count or (np.diff(inner) < 0).any()):
        raise refused("its documents are not in order")
    ends = np.unique(np.append(stops[inner - 1], len(tokens)))
    return tokens, ends[ends > 0].astype(np.int64)


def _ends(tokens: Tokens, end: int) -> Places:
    """The places behind each token `end`, and the end of the file."""
    found = [
        np.flatnonzero(tokens[at : at + (1 << 24)] == end) + at + 1
        for at in range(0, len(tokens), 1 << 24)
    ]
    return np.unique(np.append(np.concatenate(found), len(tokens))).astype(np.int64)


def digest_of(paths: Sequence[Path]) -> str:
    """A hash of the files: of all bytes, or of a file over 1 GiB of its size and 1,024 blocks."""
    total = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        total.update(size.to_bytes(8, "little"))
        step = BLOCK if size <= WHOLE else size // 1024
        with path.open("rb") as file:
            for at in range(0, size, step):
                file.seek(at)
                total.update(file.read(BLOCK))
    return total.hexdigest()
