"""What `manifest.json` says: every tensor, the pieces that hold it, and the hash of every file."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec
from msgspec import structs

from fllmc.runtime.checkpoint.boxes import Box, Shape

SCHEMA: Final = 1
NAME: Final = "manifest.json"
FILE_NAME: Final = re.compile(r"rank-\d{5,}\.safetensors")


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A box of a tensor: the elements from `offsets`, `shape` many, under `key` in `file`.

    `dtype` is that of the piece where it is not the tensor's, as of frozen rows beside trained.
    """

    file: str
    key: str
    offsets: Shape
    shape: Shape
    dtype: str = ""


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole tensor. `dtype` is named as in the IR: `f32`, `bf16`, `i64`.

    `absent` are the ends of stretches of rows that have no value: of a state, the frozen rows.
    """

    dtype: str
    shape: Shape
    pieces: tuple[Piece, ...]
    absent: tuple[int, ...] = ()

    @property
    def gaps(self) -> tuple[Box, ...]:
        """The elements that have no value."""
        ends = zip(self.absent[::2], self.absent[1::2], strict=True)
        rest = self.shape[1:]
        return tuple(Box((a, *(0 for _ in rest)), (b - a, *rest)) for a, b in ends)

    @property
    def mixed(self) -> bool:
        """Whether pieces differ in dtype."""
        return any(piece.dtype for piece in self.pieces)

    @property
    def rows(self) -> tuple[tuple[int, int, str], ...]:
        """The stretches of rows that have a value, with their dtypes; of a scalar none."""
        found: dict[tuple[int, int, str], None] = {}
        for piece in self.pieces if self.shape else ():
            first, count = piece.offsets[0], piece.shape[0]
            found[first, first + count, piece.dtype or self.dtype] = None
        return tuple(found)

    def kind(self) -> str:
        """As diagnostics print it: `f32[128, 64]`."""
        return describe(self.dtype, self.shape)


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's size in bytes and its SHA-256."""

    bytes: int
    sha256: str


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a run stands. With counter-based randomness and data order, nothing else is needed.

    `step` steps are done and `samples` samples consumed. `plan` is the hash of the plan, `facts`
    whatever else a resumed run must agree on, such as the hashes of data and tokenizer.
    """

    step: int
    samples: int
    plan: str
    seed: int
    facts: dict[str, str | int] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A committed checkpoint. `digest` is the SHA-256 of this manifest with an empty digest."""

    schema: int
    position: Position
    tensors: dict[str, TensorEntry]
    files: dict[str, FileRecord]
    digest: str = ""

    def holds(self, file: str) -> str:
        """The tensors with a piece in `file`, in words."""
        names = sorted(n for n, t in self.tensors.items() if any(p.file == file for p in t.pieces))
        shown = ", ".join(f"`{name}`" for name in names[:3])
        rest = len(names) - 3
        return (shown or "no tensor") + (f" and {rest} more" if rest > 0 else "")


class BadManifest(Exception):
    """A manifest's bytes are not a manifest; the text says why."""


def describe(dtype: str, shape: Shape) -> str:
    """A dtype and a shape as diagnostics print them."""
    return f"{dtype}[{', '.join(map(str, shape))}]"


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes, digest filled in: equal manifests have equal bytes."""
    bare = _bytes(structs.replace(manifest, digest=""))
    return _bytes(structs.replace(manifest, digest=hashlib.sha256(bare).hexdigest()))


def decode(content: bytes) -> Manifest:
    """The manifest of exactly these bytes. Raises BadManifest for any others."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadManifest(f"not a manifest: {error}") from error
    if manifest.schema != SCHEMA:
        raise BadManifest(f"schema {manifest.schema}, but this version reads {SCHEMA}")
    if encode(manifest) != content:
        raise BadManifest("its bytes have changed since it was written")
    for name in manifest.files:
        # The name becomes a path: nothing but the writer's own form may.
        if not FILE_NAME.fullmatch(name):
            raise BadManifest(f"`{name}` is not the name of a piece file")
    return manifest


def _bytes(manifest: Manifest) -> bytes:
    encoded = msgspec.json.encode(manifest, order="deterministic")
    return msgspec.json.format(encoded, indent=1) + b"\n"
