"""What a run can find wrong with token files, JSON lines and their columns, in words."""

from __future__ import annotations

from fllmc.ir.diagnostics import Diagnostic


class BadTokenFile(Diagnostic, frozen=True):
    """A file of token numbers is `.npy`, raw `.bin`, or `.bin` with an `.idx` beside it.

    A raw file holds little-endian numbers as wide as `stored` says.
    """

    code = "E0614"
    title = "cannot read tokens from `{file}`: {reason}"
    label = "named here"

    file: str
    reason: str


class BadRecord(Diagnostic, frozen=True):
    """Each line of a `.jsonl` file is a document: an object with `text`, `tokens` or `messages`.

    Fields that `columns` names are numbers: one, or with `tokens` a list with one for each.
    """

    code = "E0615"
    title = "`{place}` is not a document: {reason}"
    label = "the data source is named here"

    place: str
    reason: str


class MixedKinds(Diagnostic, frozen=True):
    """The files of one source are all text, all JSON lines or all tokens.

    Sources of several kinds go together in a mixture: `source: mix(a: 0.5, b: 0.5)`.
    """

    code = "E0616"
    title = "the data source `{source}` matches files of several kinds: {kinds}"
    label = "matched here"
    help = ("make a data section for each kind, and a mixture of them",)

    source: str
    kinds: str


class UnknownToken(Diagnostic, frozen=True):
    """A mark that is written as text must be one token of the tokenizer."""

    code = "E0617"
    title = "`{token}` is not one token of the tokenizer `{tokenizer}`"
    label = "its vocabulary has no such token"
    help = ("write the token's number",)

    token: str
    tokenizer: str


class NoTextForTokenizer(Diagnostic, frozen=True):
    """A BPE is trained on the run's text, and files of tokens have none."""

    code = "E0618"
    title = "the tokenizer `{tokenizer}` can't be trained: `{source}` holds tokens, not text"
    label = "no text to train on"
    help = ('name the tokenizer file that the tokens were made with, or `tokenizer: "none"`',)

    tokenizer: str
    source: str


class NoSuchColumn(Diagnostic, frozen=True):
    """A loss or a model reads a column by name that the data does not have."""

    code = "E0619"
    title = "the data has no column `{name}`"
    label = "its columns are {known}"
    help = ("name it under `columns` of the data section, and give it in each JSON line",)

    name: str
    known: str
