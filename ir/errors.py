"""Mistakes in IR text: what `fllmc opt` and `inspect` say of a file that they cannot read."""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic, did_you_mean


class UnreadableText(Diagnostic, frozen=True):
    """The text of a program departs from the text form at this place.

    `docs/ir.md` describes the form; `fllmc inspect` prints examples of it.
    """

    code: ClassVar[str] = "E0150"
    title: ClassVar[str] = "wanted {wanted}, found {found}"
    label: ClassVar[str] = "wanted {wanted}"

    wanted: str
    found: str


class UnknownWord(Diagnostic, frozen=True):
    """An op, attribute or role in the text of a program is none that this version has.

    A text written by another version may use ops that this one names otherwise.
    """

    code: ClassVar[str] = "E0151"
    title: ClassVar[str] = "no {what} is called `{word}`"
    label: ClassVar[str] = "no such {what}"

    what: str
    word: str
    known: tuple[str, ...]

    def helps(self) -> tuple[str, ...]:
        """The nearest known word, if one is near."""
        return did_you_mean(self.word, self.known)


class Misnumbered(Diagnostic, frozen=True):
    """Values are numbered in order: a function's inputs from %0, then each op's results.

    So a number says where its value is made, and a graph has one text only.
    """

    code: ClassVar[str] = "E0152"
    title: ClassVar[str] = "value `%{number}` stands where `%{wanted}` is next"
    label: ClassVar[str] = "should be `%{wanted}`"

    number: int
    wanted: int


class MissingAttribute(Diagnostic, frozen=True):
    """An op or parameter lacks an attribute that has no default."""

    code: ClassVar[str] = "E0153"
    title: ClassVar[str] = "`{owner}` needs the attribute `{attribute}`"
    label: ClassVar[str] = "`{attribute}` is missing"

    owner: str
    attribute: str


class Repeated(Diagnostic, frozen=True):
    """A name that may stand once only stands twice."""

    code: ClassVar[str] = "E0154"
    title: ClassVar[str] = "{what} `{word}` stands twice"
    label: ClassVar[str] = "the second one"

    what: str
    word: str


class InvalidProgram(Diagnostic, frozen=True):
    """The text can be read, but the program breaks a rule that every program of its level keeps.

    The verifier checks these rules after every pass; `docs/ir.md` lists them.
    """

    code: ClassVar[str] = "E0155"
    title: ClassVar[str] = "not a valid program: {fault}"
    label: ClassVar[str] = "breaks a rule of the program's level"

    fault: str
