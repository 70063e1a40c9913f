"""`stage NAME { ... }` in a run: the parts that it has, and what each of them changes.

A stage whose `batch` or `seq` is `ramp(A, B, ...)` is as many parts of about equal length.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.errors import Duplicate
from fllmc.frontend.section_errors import UnknownKey
from fllmc.frontend.sections.selectors import selector_text
from fllmc.frontend.semantics.matching import shown
from fllmc.frontend.type_errors import WrongValue
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.settings import Adapter, Spec

OF_TRAIN = ("data", "rate", "steps")
OF_DATA = ("batch", "seq")
OF_ADAPTER = ("freeze", "tune")
KEYS = (*OF_TRAIN, *OF_DATA, *OF_ADAPTER)


class Part(Struct, frozen=True):
    """One part of a run, lowered as if it were all of it; `of` counts the parts of its stage."""

    name: str
    fields: tuple[ast.Field, ...]
    at: int = 0
    of: int = 1

    def under(self, keys: Sequence[str]) -> tuple[ast.Field, ...]:
        """Its fields with these keys."""
        return tuple(field for field in self.fields if field.key.text in keys)

    @property
    def own_rate(self) -> bool:
        """Whether it has a rate of its own, which counts from the beginning of its stage."""
        return bool(self.under(("rate",)))


def parts_of(train: ast.Train) -> tuple[tuple[Part, ...], tuple[Diagnostic, ...]]:
    """The parts of a run in order, none where it has no stages; and what is wrong with them."""
    parts: list[Part] = []
    found: list[Diagnostic] = []
    names: dict[str, ast.Name] = {}
    for stage in train.stages:
        first = names.setdefault(stage.name.text, stage.name)
        if first is not stage.name:
            found.append(Duplicate(stage.name.span, stage.name.text, "stage", first.span))
        seen: dict[str, ast.Name] = {}
        for field in stage.fields:
            key = field.key.text
            if key not in KEYS:
                what = f"stage `{stage.name.text}`"
                found.append(UnknownKey(field.key.span, key, KEYS, what))
            if seen.setdefault(key, field.key) is not field.key:
                found.append(Duplicate(field.key.span, key, "field", seen[key].span))
        parts += _ramped(stage, found)
    return tuple(parts), tuple(found)


def _ramped(stage: ast.Stage, found: list[Diagnostic]) -> list[Part]:
    """The parts of one stage."""
    ramps = {
        field.key.text: [argument.value for argument in field.value.arguments]
        for field in stage.fields
        if field.key.text in OF_DATA
        and isinstance(field.value, ast.Call)
        and isinstance(field.value.function, ast.Ref)
        and field.value.function.name == "ramp"
        and field.value.arguments
    }
    counts = {len(values) for values in ramps.values()}
    name = stage.name.text
    if not counts:
        return [Part(name, stage.fields)]
    count = min(counts)
    if len(counts) > 1:
        (field,) = [field for field in stage.fields if field.key.text == "seq"]
        where = f"`seq` of stage `{name}`"
        wanted = "a ramp of as many values as that of `batch`"
        found.append(WrongValue(field.value.span, where, wanted, shown(field.value)))
    parts: list[Part] = []
    for at in range(count):
        fields = [
            structs.replace(field, value=ramps[field.key.text][at])
            if field.key.text in ramps
            else structs.replace(field, value=_share(field.value, at, count))
            if field.key.text == "steps"
            else field
            for field in stage.fields
        ]
        parts.append(Part(name, tuple(fields), at, count))
    return parts


def _share(value: ast.Expr, at: int, count: int) -> ast.Expr:
    """One of `count` parts of some steps or tokens."""
    if isinstance(value, ast.Quantity):
        return structs.replace(value, value=value.value / count)
    if isinstance(value, ast.Number) and isinstance(value.value, int):
        steps = value.value * (at + 1) // count - value.value * at // count
        return structs.replace(value, value=steps)
    return value


def with_fields(own: tuple[ast.Field, ...], others: tuple[ast.Field, ...]) -> tuple[ast.Field, ...]:
    """Fields with others in place of those that have the same key; `rate in ...` is another."""
    keys = {field.key.text for field in others}
    kept = (f for f in own if isinstance(f, ast.FieldIn) or f.key.text not in keys)
    return (*kept, *others)


def selected(part: Part, key: str) -> tuple[tuple[ast.Expr, ...], tuple[Diagnostic, ...]]:
    """The selectors of `freeze` or `tune`, one or a list."""
    selectors: list[ast.Expr] = []
    found: list[Diagnostic] = []
    for field in part.under((key,)):
        items = field.value.items if isinstance(field.value, ast.List) else (field.value,)
        for item in items:
            if isinstance(item, ast.Selector | ast.Ref):
                selectors.append(item)
            else:
                where = f"`{key}` of stage `{part.name}`"
                wanted = "a list of paths such as `[*.scale, embedding]`"
                found.append(WrongValue(item.span, where, wanted, shown(item)))
    return tuple(selectors), tuple(found)


def adapted(
    base: Adapter | None, name: str, freeze: Sequence[ast.Expr], tune: Sequence[ast.Expr]
) -> Adapter | None:
    """An adapter with what a stage freezes and tunes besides; None where nothing does."""
    if not freeze and not tune:
        return base
    base = base or Adapter(name)
    return structs.replace(
        base,
        freeze=(*base.freeze, *map(selector_text, freeze)),
        tune=(*base.tune, *map(selector_text, tune)),
    )


def in_order(specs: Sequence[Spec], parts: Sequence[Part]) -> Spec:
    """The parts of a run one behind the other: the first with all later ones."""
    begin, placed = 0, list[Spec]()
    samples: dict[tuple[str, int], int] = {}
    lengths = [spec.train.steps for spec in specs]
    for number, (spec, part) in enumerate(zip(specs, parts, strict=True)):
        steps = lengths[number]
        first = number - part.at
        rate_begin = sum(lengths[:first]) if part.own_rate else 0
        rate_steps = sum(lengths[first : first + part.of]) if part.own_rate else sum(lengths)
        read = (spec.data.name, spec.data.seq)
        last = number == len(specs) - 1
        train = structs.replace(
            spec.train,
            stage=part.name if part.of == 1 else f"{part.name}.{part.at + 1}",
            begin=begin,
            steps=begin + steps,
            first_sample=samples.get(read, 0),
            rate_begin=rate_begin,
            rate_steps=rate_steps,
            sample=spec.train.sample if last else structs.replace(spec.train.sample, tokens=0),
        )
        placed.append(structs.replace(spec, train=train))
        samples[read] = samples.get(read, 0) + steps * spec.data.batch
        begin += steps
    return structs.replace(placed[0], later=tuple(placed[1:]))
