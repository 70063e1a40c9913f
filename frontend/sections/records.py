"""Records read field by field: what is asked for is what may stand there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from fllmc.frontend import ast
from fllmc.frontend.errors import Duplicate
from fllmc.frontend.section_errors import MissingKey, OutOfRange, UnknownKey
from fllmc.frontend.semantics.matching import shown
from fllmc.frontend.type_errors import WrongValue
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span

LARGEST = 2**62
Word = TypeVar("Word", bound=str)


class Record:
    """The fields of one record, each read by the kind of value that it must have.

    Every reading returns the default when the field is missing or, after a report, wrong. `done`
    reports the fields that nothing asked for.
    """

    def __init__(self, what: str, place: Span, fields: Iterable[ast.Field]) -> None:
        self.what = what
        self.place = place
        self.asked: list[str] = []
        self.found: list[Diagnostic] = []
        self.fields: dict[str, ast.Field] = {}
        for field in fields:
            first = self.fields.setdefault(field.key.text, field)
            if first is not field:
                where, name = field.key.span, field.key.text
                self.found.append(Duplicate(where, name, "field", first.key.span))

    def has(self, key: str) -> bool:
        """Whether the field is there; it counts as asked for."""
        self.asked.append(key)
        return key in self.fields

    def value(self, key: str, example: str = "") -> ast.Expr | None:
        """The field's value as written; reported missing if an example says that it is needed."""
        self.asked.append(key)
        field = self.fields.get(key)
        if field is None and example:
            self.found.append(MissingKey(self.place, self.what, key, example))
        return None if field is None else field.value

    def place_of(self, key: str) -> Span:
        """Where the field's value stands, or the record's own place."""
        field = self.fields.get(key)
        return self.place if field is None else field.value.span

    def wrong(self, key: str, value: ast.Expr, wanted: str, words: Sequence[str] = ()) -> None:
        """Report a value of the wrong kind."""
        word = value.name if isinstance(value, ast.Ref) else ""
        where, found = f"`{key}` of {self.what}", shown(value)
        self.found.append(WrongValue(value.span, where, wanted, found, tuple(words), word))

    def text(self, key: str, default: str = "", example: str = "") -> str:
        """A string."""
        value = self.value(key, example)
        if value is None:
            return default
        if isinstance(value, ast.String):
            return value.value
        self.wrong(key, value, "a text in quotes")
        return default

    def number(
        self,
        key: str,
        default: float = 0.0,
        low: float = 0.0,
        high: float = float("inf"),
        example: str = "",
    ) -> float:
        """A number from `low` to `high`."""
        value = self.value(key, example)
        if value is None:
            return default
        if not isinstance(value, ast.Number):
            self.wrong(key, value, "a number")
            return default
        if not low <= value.value <= high:
            wanted = f"{low:g} to {high:g}" if high < float("inf") else f"{low:g} or more"
            self.out_of_range(key, value, wanted)
            return default
        return float(value.value)

    def count(self, key: str, default: int = 0, low: int = 0, example: str = "") -> int:
        """A whole number, `low` or more."""
        value = self.value(key, example)
        if value is None:
            return default
        number = int(value.value) if isinstance(value, ast.Number) else None
        if number is None or not isinstance(value, ast.Number) or value.value != number:
            self.wrong(key, value, "a whole number")
            return default
        if not low <= number <= LARGEST:
            self.out_of_range(key, value, f"{low} or more")
            return default
        return number

    def tokens(self, key: str, each: int, default: int = 0, low: int = 0, example: str = "") -> int:
        """A count of steps, or of tokens as `4M tokens`: the steps of `each` tokens that take them.

        With `each` 0 it is not known yet how many tokens a step has, and 1 stands for the steps.
        """
        value = self.fields[key].value if key in self.fields else None
        if not (isinstance(value, ast.Quantity) and value.unit == "tokens"):
            return self.count(key, default, low, example)
        self.asked.append(key)
        return max(1, -int(-value.value // each)) if each else 1

    def gib(self, key: str) -> float | None:
        """`KEY: 40GiB`, or `KEY_gib: 40`, in GiB; None where neither is there."""
        plain = f"{key}_gib"
        value = self.value(key)
        if value is None:
            return self.number(plain) if self.has(plain) else None
        if plain in self.fields:
            where = self.fields[plain].key.span
            self.found.append(Duplicate(where, plain, "field", self.fields[key].key.span))
        self.asked.append(plain)
        if isinstance(value, ast.Quantity) and value.unit == "bytes":
            return value.value / 2**30
        self.wrong(key, value, "a size such as `40GiB`")
        return None

    def stretch(self, key: str, example: str) -> tuple[int, int]:
        """`(first, stop)`: whole numbers, the second the larger; (0, 1) where that is not so."""
        value = self.value(key, example)
        if value is None:
            return 0, 1
        items = value.items if isinstance(value, ast.Tuple) else ()
        ends = [item.value for item in items if isinstance(item, ast.Number)]
        if not len(ends) == len(items) == 2 or any(end != int(end) for end in ends):
            self.wrong(key, value, f"a pair of whole numbers such as `{example}`")
            return 0, 1
        first, stop = (int(end) for end in ends)
        if not 0 <= first < stop <= LARGEST:
            where, shown = f"`{key}` of {self.what}", f"({first}, {stop})"
            wanted = "from a first row to the one behind the last"
            self.found.append(OutOfRange(value.span, where, wanted, shown))
            return 0, 1
        return first, stop

    def out_of_range(self, key: str, value: ast.Number, wanted: str) -> None:
        """Report a number that makes no sense."""
        where = f"`{key}` of {self.what}"
        self.found.append(OutOfRange(value.span, where, wanted, value.text))

    def word(self, key: str, words: Sequence[Word], default: Word) -> Word:
        """One of some words."""
        value = self.value(key)
        if value is None:
            return default
        for word in words:
            if isinstance(value, ast.Ref) and value.name == word:
                return word
        self.wrong(key, value, " or ".join(f"`{word}`" for word in words), words)
        return default

    def choice(self, key: str, numbers: Sequence[int], default: int) -> int:
        """One of some whole numbers."""
        value = self.value(key)
        if value is None:
            return default
        if isinstance(value, ast.Number) and value.value in numbers:
            return int(value.value)
        self.wrong(key, value, " or ".join(map(str, numbers)))
        return default

    def name(self, key: str) -> str:
        """A name; empty if the field is missing."""
        value = self.value(key)
        if value is None or isinstance(value, ast.Ref):
            return "" if value is None else value.name
        self.wrong(key, value, "a name")
        return ""

    def names(self, key: str) -> tuple[str, ...]:
        """A name, or a list of names; empty if the field is missing."""
        value = self.value(key)
        if value is None:
            return ()
        items = value.items if isinstance(value, ast.List) else (value,)
        found = tuple(item.name for item in items if isinstance(item, ast.Ref))
        if len(found) < len(items):
            self.wrong(key, value, "a list of names such as `[first, second]`")
        return found

    def flag(self, key: str) -> bool:
        """`true` or `false`; false if missing."""
        value = self.value(key)
        if value is None or isinstance(value, ast.Boolean):
            return value is not None and value.value
        self.wrong(key, value, "`true` or `false`")
        return False

    def call(self, key: str, names: Sequence[str], example: str = "") -> Record | None:
        """`NAME(key: value, ...)` as a record of its own; None if missing or wrong."""
        value = self.value(key, example)
        if value is None:
            return None
        if isinstance(value, ast.Ref) and value.name in names:
            return Record(f"`{value.name}`", value.span, ())
        if isinstance(value, ast.Call) and isinstance(value.function, ast.Ref):
            name = value.function.name
            if name in names:
                return self.arguments(value, name)
        word = value.function if isinstance(value, ast.Call) else value
        wanted = " or ".join(f"`{name}(...)`" for name in names)
        where = f"`{key}` of {self.what}"
        near = word.name if isinstance(word, ast.Ref) else ""
        found = WrongValue(value.span, where, wanted, shown(value), tuple(names), near)
        self.found.append(found)
        return None

    def arguments(self, value: ast.Call, name: str) -> Record:
        """The named arguments of a call as a record; an unnamed one is called after its place."""
        fields = [
            ast.Field(a.span, a.key or ast.Name(a.span, f"argument {number + 1}"), a.value)
            for number, a in enumerate(value.arguments)
        ]
        return Record(f"`{name}`", value.span, fields)

    def take(self, other: Record | None) -> None:
        """Finish a record that was part of this one."""
        if other is not None:
            self.found.extend(other.done())

    def done(self) -> tuple[Diagnostic, ...]:
        """All mistakes, unknown fields included."""
        for key, field in self.fields.items():
            if key not in self.asked:
                found = UnknownKey(field.key.span, key, tuple(dict.fromkeys(self.asked)), self.what)
                self.found.append(found)
        return tuple(self.found)
