"""Sizes of dims out of a foreign `config.json`, and whether it is of the spec's model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from fllmc.frontend import ast
from fllmc.frontend.checking import Checked
from fllmc.frontend.config_errors import (
    ConfigDiffers,
    ConfigMissing,
    ConfigNotSize,
    ConfigUnread,
    ConfigUnsaid,
)
from fllmc.frontend.lowering.foreign import json_of
from fllmc.frontend.lowering.spec import Lowering, chosen_names
from fllmc.frontend.section_errors import UnknownSection
from fllmc.frontend.sections.overrides import read_overrides
from fllmc.frontend.semantics.blocks import refs
from fllmc.frontend.semantics.foreign_lines import Names, shown
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError

Config = Mapping[str, object]
BY_DATA = ("batch", "seq")
MISSING = object()


def configured(
    checked: Checked, given: Mapping[str, str], config: Config
) -> tuple[dict[str, str], tuple[Diagnostic, ...]]:
    """Options that set what the configuration says, beside those given; and what is wrong with it.

    DiagnosticError where the spec has no checkpoint section that could read it.
    """
    names = _names(checked, given)
    found: list[Diagnostic] = []
    options: dict[str, str] = {}
    unsaid: list[str] = []
    read: set[str] = set()
    for item in names.config:
        key = shown(item.key) if isinstance(item, ast.ConfigDim) else item.key.value
        read.add(key)
        value = _look_up(config, key)
        if isinstance(item, ast.ConfigDim):
            if f"dims.{item.dim.text}" not in given:
                found += _size(checked, item, key, value, options)
            continue
        wanted = msgspec.json.decode(json_of(item.value))
        if value is MISSING:
            unsaid.append(key)
        elif not _same(value, wanted):
            shown_value = msgspec.json.encode(value).decode()
            found.append(ConfigDiffers(item.span, key, shown_value, json_of(item.value)))
    unread = [key for key in _keys(config) if key not in read]
    place = names.name.span
    said = {key.rsplit(".", 1)[-1] for key in read if _look_up(config, key) is not MISSING}
    unsaid = [key for key in unsaid if key.rsplit(".", 1)[-1] not in said]
    if unsaid:
        found.append(ConfigUnsaid(place, ", ".join(f"`{key}`" for key in unsaid)))
    if unread:
        keys = ", ".join(f"`{key}`" for key in unread)
        found.append(ConfigUnread(place, len(unread), keys))
    return {**options, **given}, tuple(found)


def _names(checked: Checked, given: Mapping[str, str]) -> Names:
    """The checkpoint section of the run's model."""
    overrides = read_overrides(given, checked.module.dims)
    lowering = Lowering(checked, overrides)
    train = lowering.chosen_train()
    model, _ = lowering.subject(train)
    key = chosen_names(checked, model, overrides)
    if key is None:
        known = checked.module.known("checkpoint")
        what = "checkpoint section"
        raise DiagnosticError(UnknownSection(train.subject.span, f"for {model.name}", known, what))
    return checked.names[key]


def _size(
    checked: Checked, item: ast.ConfigDim, key: str, value: object, options: dict[str, str]
) -> Iterator[Diagnostic]:
    """Set a dim's size, or say why it has none."""
    dim = item.dim.text
    declared = checked.module.dims.get(dim, ())
    sized = next((each.size for each in declared if each.size is not None), None)
    if value is MISSING or value is None:
        if sized is None or not any(refs(sized)):
            yield ConfigMissing(item.span, key, dim)
    elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
        yield ConfigNotSize(item.span, key, msgspec.json.encode(value).decode(), dim)
    else:
        group = "data" if dim in BY_DATA and sized is None else "dims"
        options[f"{group}.{dim}"] = str(value)


def _look_up(config: object, key: str) -> object:
    """The value at a key whose parts are separated by dots, or `MISSING`."""
    value = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]  # pyright: ignore[reportUnknownVariableType]
    return value  # pyright: ignore[reportUnknownVariableType]


def _keys(config: object, before: str = "") -> Iterator[str]:
    """All keys that hold no object, in order."""
    if isinstance(config, Mapping):
        for key, value in config.items():  # pyright: ignore[reportUnknownVariableType]
            if isinstance(value, Mapping):
                yield from _keys(value, f"{before}{key}.")  # pyright: ignore[reportUnknownArgumentType]
            else:
                yield f"{before}{key}"


def _same(found: object, wanted: object) -> bool:
    """Whether two JSON values are equal; a number equals a number, whole or not."""
    plain = isinstance(found, bool) == isinstance(wanted, bool)
    return plain and found == wanted
