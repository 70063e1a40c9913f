"""`train` sections: the run's settings, and which optimizer and rate it uses with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.section_errors import BadBinding, NoDecay, UnknownKey, UnknownSection
from fllmc.frontend.sections.records import Record
from fllmc.frontend.semantics.matching import shown
from fllmc.frontend.semantics.typed_rules import Rule, RuleParameter
from fllmc.frontend.type_errors import WrongValue
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.settings import Loss, Precision, Sample, Train
from fllmc.ir.types import FLOATS

Rules = Mapping[str, Rule]
Losses = Mapping[str, Mapping[str, float]]
"""The losses that a file may use: their numbers with the defaults."""
NO_LOSSES: Losses = {}
INFINITE = float("inf")


class Choice(Struct, frozen=True):
    """A rule with values for all its parameters, by the names that its equations use."""

    rule: Rule
    arguments: Mapping[str, float]


class Part(Struct, frozen=True):
    """`optimizer in SELECTORS: ...` or `rate in SELECTORS: ...`."""

    selectors: tuple[ast.Expr, ...]
    optimizer: Choice | None = None
    rate: Choice | None = None


class TrainSection(Struct, frozen=True):
    """A read section. Selectors in `no_decay` are not matched yet."""

    train: Train
    data: ast.Name | None
    optimizer: Choice | None
    rate: Choice | None
    no_decay: tuple[ast.Expr, ...]
    parts: tuple[Part, ...] = ()


def read_train(
    section: ast.Train, optimizers: Rules, rates: Rules, each: int = 0, losses: Losses = NO_LOSSES
) -> tuple[TrainSection, tuple[Diagnostic, ...]]:
    """The section's settings, and what is wrong with it.

    `each` is how many tokens a step has, for counts of tokens; 0 where that is not known yet.
    """
    name = section.name
    whole = [field for field in section.fields if not isinstance(field, ast.FieldIn)]
    record = Record(f"train `{name.text}`", name.span, whole)
    data = _name(record, "data", "a data section")
    optimizer = _rule(record, "optimizer", optimizers, "adamw()")
    rate = _rule(record, "rate", rates, "cosine(peak: 3e-4)", each)
    parts = tuple(_parts(record, section.fields, optimizers, rates, each))
    steps = [found for found in (optimizer, *(part.optimizer for part in parts)) if found]
    no_decay = _selectors(record, "no_decay", steps)
    train = Train(
        name.text,
        section.subject.text,
        record.tokens("steps", each, low=1, example="1_000"),
        _loss(record, losses),
        _precision(record),
        record.number("clip"),
        record.count("seed"),
        record.tokens("evaluate_every", each),
        record.tokens("checkpoint_every", each),
        record.count("log_every", 10),
        _sample(record),
        _init(record),
        section.span,
    )
    return TrainSection(train, data, optimizer, rate, no_decay, parts), record.done()


def _parts(
    record: Record, fields: Sequence[ast.Field], optimizers: Rules, rates: Rules, each: int
) -> Iterator[Part]:
    """What is said of selected parameters alone."""
    for field in fields:
        if not isinstance(field, ast.FieldIn):
            continue
        key, selector = field.key.text, field.selector
        selectors = selector.items if isinstance(selector, ast.List) else (selector,)
        alone = Record(record.what, field.key.span, (field,))
        if key == "optimizer":
            yield Part(selectors, optimizer=_rule(alone, key, optimizers, "adamw()"))
        elif key == "rate":
            yield Part(selectors, rate=_rule(alone, key, rates, "cosine(peak: 3e-4)", each))
        else:
            known = ("optimizer", "rate")
            record.found.append(UnknownKey(field.key.span, key, known, f"{record.what}, with `in`"))
        record.found += alone.found


def _name(record: Record, key: str, wanted: str) -> ast.Name | None:
    value = record.value(key)
    if isinstance(value, ast.Ref):
        return ast.Name(value.span, value.name)
    if value is not None:
        record.wrong(key, value, f"the name of {wanted}")
    return None


def _loss(record: Record, losses: Losses) -> Loss:
    names = ("cross_entropy", *losses)
    given = record.call("loss", names, example="cross_entropy()")
    if given is None:
        return Loss()
    kind = given.what.strip("`")
    if kind in losses:
        numbers = tuple((n, given.number(n, d, low=-INFINITE)) for n, d in losses[kind].items())
        mask = _name(given, "mask", "a field of the data")
        record.take(given)
        return Loss(kind, mask=mask.text if mask else "", numbers=numbers)
    mask = _name(given, "mask", "a field of the data")
    loss = Loss("cross_entropy", given.number("z_loss"), mask.text if mask else "")
    record.take(given)
    return loss


def _precision(record: Record) -> Precision:
    """`policy(params: f32, compute: bf16, reduce: f32)`, or one dtype for all."""
    value = record.value("precision")
    if value is None:
        return Precision()
    if isinstance(value, ast.Ref) and value.name in FLOATS:
        return Precision(value.name, value.name, value.name)
    if isinstance(value, ast.Ref) and value.name != "policy":
        record.wrong("precision", value, "a dtype or `policy(...)`", (*FLOATS, "policy"))
        return Precision()
    given = record.call("precision", ("policy",))
    if given is None:
        return Precision()
    params, compute, reduce = (
        given.word(k, FLOATS, "f32") for k in ("params", "compute", "reduce")
    )
    record.take(given)
    return Precision(params, compute, reduce)


def _sample(record: Record) -> Sample:
    given = record.call("sample", ("text",))
    if given is None:
        return Sample()
    prompt, tokens = given.text("prompt"), given.count("tokens", 200)
    sample = Sample(prompt, tokens, given.number("temperature", 0.8))
    record.take(given)
    return sample


def _init(record: Record) -> str:
    value = record.value("init")
    match value:
        case None:
            return ""
        case ast.Call(
            function=ast.Ref(name="checkpoint"),
            arguments=(ast.Argument(key=None, value=ast.String(value=path)),),
        ):
            return path
        case _:
            record.wrong("init", value, '`checkpoint("PATH")`')
            return ""


def _selectors(record: Record, key: str, optimizers: Sequence[Choice]) -> tuple[ast.Expr, ...]:
    value = record.value(key)
    if value is None:
        return ()
    items = value.items if isinstance(value, ast.List) else (value,)
    for item in items:
        if not isinstance(item, ast.Selector | ast.Ref):
            record.wrong(key, item, "a list of paths such as `[*.scale, embedding]`")
            return ()
    rules = [choice.rule for choice in optimizers]
    if rules and not any(p.name == "weight_decay" for rule in rules for p in rule.parameters):
        record.found.append(NoDecay(value.span, rules[0].name))
    return items


# Optimizers and rates with their arguments.


def counts_tokens(section: ast.Train) -> bool:
    """Whether anything in the section is counted in tokens."""
    values: list[object] = [field.value for field in section.fields]
    while values:
        value = values.pop()
        if isinstance(value, ast.Quantity) and value.unit == "tokens":
            return True
        if isinstance(value, ast.Call):
            values += [argument.value for argument in value.arguments]
    return False


def _rule(record: Record, key: str, rules: Rules, example: str, each: int = 0) -> Choice | None:
    value = record.value(key, example)
    match value:
        case None:
            return None
        case ast.Ref(name=name):
            arguments: tuple[ast.Argument, ...] = ()
        case ast.Call(function=ast.Ref(name=name), arguments=arguments):
            pass
        case _:
            record.wrong(key, value, f"an {key} such as `{example}`".replace("an rate", "a rate"))
            return None
    if name not in rules:
        where = value.function.span if isinstance(value, ast.Call) else value.span
        record.found.append(UnknownSection(where, name, tuple(rules), key))
        return None
    given = _bound(record, value, rules[name], in_steps(arguments, each))
    return None if given is None else Choice(rules[name], given)


def in_steps(arguments: tuple[ast.Argument, ...], each: int) -> tuple[ast.Argument, ...]:
    """The arguments with counts of tokens as steps of so many; 1 step where that is not known."""
    found: list[ast.Argument] = []
    for argument in arguments:
        value = argument.value
        if isinstance(value, ast.Quantity) and value.unit == "tokens":
            steps = value.value / each if each else 1.0
            value = ast.Number(value.span, steps, value.text)
        found.append(structs.replace(argument, value=value))
    return tuple(found)


def _bound(
    record: Record, value: ast.Expr, rule: Rule, arguments: tuple[ast.Argument, ...]
) -> dict[str, float] | None:
    """Values by name for all parameters of a rule; None if a mistake was reported."""
    before, form = len(record.found), _form(rule)
    names = tuple(parameter.name for parameter in rule.parameters)
    given: dict[str, ast.Expr] = {}
    for position, argument in enumerate(arguments):
        key = argument.key.text if argument.key else "".join(names[position : position + 1])
        if key not in names or key in given:
            what = f"`{rule.name}` has no parameter `{key}`"
            what = f"`{rule.name}` takes no such argument" if not key or key in given else what
            reason = "given twice" if key in given else "unknown" if key else "one too many"
            where = argument.key.span if argument.key else argument.span
            record.found.append(BadBinding(where, what, reason, form, key, names))
        else:
            given[key] = argument.value
    values: dict[str, float] = {}
    for parameter in rule.parameters:
        numbers = parameter.default
        if parameter.name in given:
            numbers = _numbers(record, rule, parameter, given[parameter.name])
        elif numbers is None:
            what = f"`{rule.name}` needs `{parameter.name}`"
            missing = BadBinding(value.span, what, f"`{parameter.name}` is missing", form)
            record.found.append(missing)
        values.update(zip(parameter.parts or (parameter.name,), numbers or (), strict=False))
    return values if len(record.found) == before else None


def _numbers(
    record: Record, rule: Rule, parameter: RuleParameter, value: ast.Expr
) -> tuple[float, ...] | None:
    where = f"`{parameter.name}` of `{rule.name}`"
    if parameter.truth:
        if isinstance(value, ast.Boolean):
            return (float(value.value),)
        wanted = "`true` or `false`"
    else:
        items = value.items if isinstance(value, ast.Tuple) and parameter.parts else (value,)
        numbers = tuple(float(item.value) for item in items if isinstance(item, ast.Number))
        if len(numbers) == len(items) == max(len(parameter.parts), 1):
            return numbers
        parts = ", ".join(parameter.parts)
        wanted = f"{len(parameter.parts)} numbers ({parts})" if parameter.parts else "a number"
    record.found.append(WrongValue(value.span, where, wanted, shown(value)))
    return None


def _form(rule: Rule) -> str:
    return f"{rule.name}({', '.join(map(_parameter, rule.parameters))})"


def _parameter(parameter: RuleParameter) -> str:
    if parameter.default is None:
        return f"{parameter.name}: NUMBER"
    if parameter.truth:
        return f"{parameter.name}: {'true' if parameter.default[0] else 'false'}"
    shown = ", ".join(f"{number:g}" for number in parameter.default)
    return f"{parameter.name}: ({shown})" if parameter.parts else f"{parameter.name}: {shown}"
