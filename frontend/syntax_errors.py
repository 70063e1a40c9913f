"""What the parser and the reader of files say."""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic, Edit, Fix, Label, instead
from fllmc.ir.span import Span

LOOKALIKES = {
    "×": "*",
    "·": "*",
    "∗": "*",
    "÷": "/",
    "−": "-",
    "–": "-",
    "→": "->",
    "“": '"',
    "”": '"',
}
"""Characters that word processors and papers put in the place of the language's signs."""


class UnexpectedToken(Diagnostic, frozen=True):
    """The text stops following the grammar here.

    The message names what could have stood at this place and what was found instead. Often the
    mistake is just before: a missing comma, `=` where a record wants `:`, a forgotten type.

        param wq embed -> heads      # expected `:`, found `embed`
        param wq: embed -> heads
    """

    code: ClassVar[str] = "E0101"
    title: ClassVar[str] = "expected {expected}, found {found}"
    label: ClassVar[str] = "expected {expected}"

    expected: str
    found: str
    suggestion: str | None = None
    opener: Span | None = None

    def secondary(self) -> tuple[Label, ...]:
        return () if self.opener is None else (Label(self.opener, "inside this"),)

    def helps(self) -> tuple[str, ...]:
        return () if self.suggestion is None else (f"did you mean `{self.suggestion}`?",)

    def fixes(self) -> tuple[Fix, ...]:
        """The keyword that was meant; the one sign that can stand here, instead or before."""
        if self.suggestion is not None:
            return instead(self.span, self.found.strip("`"), self.suggestion)
        sign = self.expected.strip("`")
        if self.expected != f"`{sign}`":
            return ()
        other = instead(self.span, self.found.strip("`"), sign) if sign in ":=" else ()
        return *other, Fix(f"add `{sign}`", (Edit(self.span.opening(), sign),))


class UnknownKeyword(Diagnostic, frozen=True):
    """A section, or an item in a body, begins with a word that begins none.

        parm wq: embed -> heads      # did you mean `param`?
        param wq: embed -> heads

    Sections begin with `import`, `dims`, `block`, `model`, `data`, `optimizer`, `rate`, `train`,
    `mesh`, `schedule`, `adapter` or `target`.
    """

    code: ClassVar[str] = "E0102"
    title: ClassVar[str] = "unknown keyword `{word}`"
    label: ClassVar[str] = "not the start of {place}"

    word: str
    place: str
    suggestion: str | None
    keywords: tuple[str, ...]

    def notes(self) -> tuple[str, ...]:
        if self.suggestion is not None:
            return ()
        return ("one of " + ", ".join(f"`{word}`" for word in self.keywords) + " can stand here",)

    def helps(self) -> tuple[str, ...]:
        return () if self.suggestion is None else (f"did you mean `{self.suggestion}`?",)

    def fixes(self) -> tuple[Fix, ...]:
        return instead(self.span, self.word, self.suggestion)


class Unclosed(Diagnostic, frozen=True):
    """A bracket is opened and never closed.

    The first place is the bracket; the second is where it had to be closed at the latest.

        q = rope(wq(x), along: seq       # the first `(` stays open
        q = rope(wq(x), along: seq)
    """

    code: ClassVar[str] = "E0103"
    title: ClassVar[str] = "unclosed `{bracket}`"
    label: ClassVar[str] = "this `{bracket}` is never closed"

    bracket: str
    closer: str
    latest: Span
    ended: bool

    def secondary(self) -> tuple[Label, ...]:
        where = ", the file ends here" if self.ended else " before this"
        return (Label(self.latest, f"expected `{self.closer}`{where}"),)


class Unmatched(Diagnostic, frozen=True):
    """A closing bracket has no opening one.

    return down(x))              # one `)` too many
    return down(x)
    """

    code: ClassVar[str] = "E0104"
    title: ClassVar[str] = "unmatched `{bracket}`"
    label: ClassVar[str] = "nothing open is closed by this"

    bracket: str

    def fixes(self) -> tuple[Fix, ...]:
        return (Fix(f"take `{self.bracket}` out", (Edit(self.span, "", self.bracket),)),)


class BadCharacter(Diagnostic, frozen=True):
    """These characters mean nothing in `.fllm`, outside strings and comments.

    Names are ASCII letters, digits and `_`, and do not begin with a digit.
    """

    code: ClassVar[str] = "E0105"
    label: ClassVar[str] = "not part of the language"

    text: str

    def message(self) -> str:
        shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in self.text[:20])
        return f"unknown {'character' if len(self.text) == 1 else 'characters'} `{shown}`"

    def fixes(self) -> tuple[Fix, ...]:
        if self.text in LOOKALIKES:
            return instead(self.span, self.text, LOOKALIKES[self.text])
        return (Fix("take it out", (Edit(self.span, "", self.text),)),) if self.text == ";" else ()


class UnterminatedString(Diagnostic, frozen=True):
    """A string has no closing quote on its line; strings do not span lines."""

    code: ClassVar[str] = "E0106"
    title: ClassVar[str] = "unterminated string"
    label: ClassVar[str] = 'no closing `"` on this line'

    def fixes(self) -> tuple[Fix, ...]:
        return (Fix('add `"`', (Edit(self.span.closing(), '"'),)),)


class BadEscape(Diagnostic, frozen=True):
    r"""A string holds a backslash before a character that has no such meaning.

    The escapes are `\"`, `\\`, `\n` and `\t`.
    """

    code: ClassVar[str] = "E0107"
    title: ClassVar[str] = "unknown escape `{escape}`"
    label: ClassVar[str] = "in this string"
    help: ClassVar[tuple[str, ...]] = ("write `\\\\` for a backslash",)

    escape: str


class BadNumber(Diagnostic, frozen=True):
    """A number that can't be read, or is too large to be held.

    Integers go up to 2^63 - 1; a point or an exponent makes a double-precision number. A single
    `_` may stand between digits. `k`, `M`, `B` and `T` behind a number are a thousand and so on;
    where it counts bytes, `GiB` and the like, and where tokens, ` tokens` may follow.

        steps: 500x                  # no such unit
        steps: 500k
    """

    code: ClassVar[str] = "E0108"
    title: ClassVar[str] = "bad number `{text}`"
    label: ClassVar[str] = "not a number that can be held"
    note: ClassVar[tuple[str, ...]] = (
        "numbers look like `128_256`, `0.95` or `3e-4`; integers go up to 2^63 - 1",
    )

    text: str


class TooDeep(Diagnostic, frozen=True):
    """An expression nests too deeply, or chains too many operators, to be handled safely.

    Give parts of it names of their own, in equations.
    """

    code: ClassVar[str] = "E0109"
    title: ClassVar[str] = "nested too deeply"
    label: ClassVar[str] = "more than {limit} levels here"
    help: ClassVar[tuple[str, ...]] = ("give parts of the expression names of their own",)

    limit: int


class MissingHeader(Diagnostic, frozen=True):
    """A file has to begin with the version of the language it is written in.

    fllm 1
    """

    code: ClassVar[str] = "E0110"
    title: ClassVar[str] = "the file doesn't say which version of the language it is in"
    label: ClassVar[str] = "expected `fllm 1` before this"
    help: ClassVar[tuple[str, ...]] = ("begin the file with the line `fllm 1`",)

    def fixes(self) -> tuple[Fix, ...]:
        return (Fix("add `fllm 1`", (Edit(self.span.opening(), "fllm 1\n\n"),)),)


class UnsupportedVersion(Diagnostic, frozen=True):
    """The file is written in a version of the language that this program doesn't know."""

    code: ClassVar[str] = "E0111"
    title: ClassVar[str] = "version {version} of the language is not supported"
    label: ClassVar[str] = "this program reads version 1"

    version: str

    def fixes(self) -> tuple[Fix, ...]:
        return instead(self.span, self.version, "1")


class NotText(Diagnostic, frozen=True):
    """The file is not UTF-8 text, which every `.fllm` file is."""

    code: ClassVar[str] = "E0112"
    title: ClassVar[str] = "`{path}` is not UTF-8 text"
    note: ClassVar[tuple[str, ...]] = ("byte {offset} is the first that can't be read",)

    path: str
    offset: int


class Unreadable(Diagnostic, frozen=True):
    """A file can't be opened, or is too large to be a specification."""

    code: ClassVar[str] = "E0113"
    title: ClassVar[str] = "can't read `{path}`: {reason}"

    path: str
    reason: str
    suggestion: str | None = None

    def helps(self) -> tuple[str, ...]:
        return () if self.suggestion is None else (f"did you mean `{self.suggestion}`?",)
