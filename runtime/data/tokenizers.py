"""Text to token numbers and back: bytes, byte-level BPE, or a tokenizer file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import errors

if TYPE_CHECKING:
    import tokenizers

Tokens = npt.NDArray[np.unsignedinteger]
"""Token numbers, in the smallest unsigned dtype that holds the vocabulary."""

_STRETCH = 1 << 16  # characters encoded as one text


class Tokenizer(Protocol):
    """What a run needs of a tokenizer."""

    @property
    def name(self) -> str:
        """As the spec writes it."""
        ...

    @property
    def vocab(self) -> int:
        """One more than the largest token number."""
        ...

    @property
    def sha256(self) -> str:
        """The hash of everything that the encoding depends on."""
        ...

    def encode(self, text: bytes) -> Tokens:
        """The tokens of UTF-8 text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are not UTF-8 become replacement characters."""
        ...


class ByteTokenizer(msgspec.Struct, frozen=True):
    """Each byte is a token."""

    name: str = "bytes"
    vocab: int = 256
    sha256: str = hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text: bytes) -> Tokens:
        """The bytes themselves."""
        return np.frombuffer(text, np.uint8)

    def decode(self, tokens: Sequence[int]) -> str:
        """The bytes as UTF-8; numbers past 255 are shown as unknown."""
        return bytes(t if t < 256 else 0xFF for t in tokens).decode(errors="replace")


class NoTokenizer(msgspec.Struct, frozen=True):
    """There are tokens, and nothing is known of the text that they stand for."""

    vocab: int
    name: str = "none"
    sha256: str = hashlib.sha256(b"none").hexdigest()

    def encode(self, text: bytes) -> Tokens:
        """No tokens: text says nothing here."""
        return np.empty(0, np.uint8)

    def decode(self, tokens: Sequence[int]) -> str:
        """The numbers themselves."""
        return " ".join(map(str, tokens))


class FileTokenizer(msgspec.Struct, frozen=True):
    """A tokenizer in the JSON of the `tokenizers` library. Adds no special tokens."""

    name: str
    model: tokenizers.Tokenizer
    sha256: str

    @property
    def vocab(self) -> int:
        """One more than the largest token number, added tokens included."""
        return max(self.model.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: bytes) -> Tokens:
        """The tokens of each stretch of lines, one after the other."""
        kind = np.min_scalar_type(max(self.vocab - 1, 0))
        encoded = (
            np.asarray(self.model.encode(part, add_special_tokens=False).ids, dtype=kind)
            for part in _stretches(text.decode())
        )
        return np.concatenate([np.empty(0, dtype=kind), *encoded])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text, special tokens included."""
        return self.model.decode(list(tokens), skip_special_tokens=False)


def _stretches(text: str) -> Iterator[str]:
    """`text` in parts that end with a line, so that a long text needs no memory of its size."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + _STRETCH) + 1
        stop = end or start + _STRETCH
        yield text[start:stop]
        start = stop


def load_tokenizer(name: str, path: Path, span: Span = NOWHERE) -> FileTokenizer:
    """The tokenizer in the file `path`, called `name`."""
    from tokenizers import Tokenizer as Model

    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(errors.TokenizerUnreadable(span, str(path), reason)) from error
    try:
        model = Model.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DiagnosticError(errors.TokenizerUnreadable(span, str(path), reason)) from error
    return FileTokenizer(name, model, hashlib.sha256(content).hexdigest())


def train_bpe(text: bytes, size: int, path: Path, span: Span = NOWHERE) -> FileTokenizer:
    """A byte-level BPE of `size` tokens trained on UTF-8 `text` and stored at `path`.

    Training is deterministic. A short text gives fewer tokens than `size`.
    """
    if size <= 256:
        raise DiagnosticError(errors.BpeTooSmall(span, size))
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=alphabet, special_tokens=[]
    )
    model.train_from_iterator(_stretches(text.decode()), trainer)
    content = model.to_str(pretty=True)
    try:
        _write_whole(path, content.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(errors.TokenizerUnwritable(span, str(path), reason)) from error
    return load_tokenizer(f"bpe:{size}", path, span)


def _write_whole(path: Path, content: bytes) -> None:
    """Write `path` so that other processes see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_bytes(content)
    partial.replace(path)


def choose_tokenizer(
    tokenizer: str, text: bytes, folder: Path, trained: Path, span: Span = NOWHERE, vocab: int = 0
) -> Tokenizer:
    """The tokenizer a spec names: `bytes`, `none`, `bpe:SIZE`, or a `.json` file under `folder`.

    A BPE is trained on `text` and stored at `trained`; where that file exists it is loaded, so a
    resumed run keeps its vocabulary.
    """
    if tokenizer == "bytes":
        return ByteTokenizer()
    if tokenizer == "none":
        return NoTokenizer(vocab)
    kind, _, size = tokenizer.partition(":")
    if kind == "bpe" and size.isascii() and size.isdigit():
        if trained.exists():
            return load_tokenizer(tokenizer, trained, span)
        return train_bpe(text, int(size), trained, span)
    if tokenizer.endswith(".json"):
        return load_tokenizer(tokenizer, folder / tokenizer, span)
    raise DiagnosticError(errors.UnknownTokenizer(span, tokenizer))
