"""Which losses a file may use, and whether a model can be trained with one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fllmc.frontend import ast
from fllmc.frontend.library import Module
from fllmc.frontend.lowering.sizing import BOUND
from fllmc.frontend.section_errors import LossDoesNotFit
from fllmc.frontend.semantics.kinds import differs
from fllmc.frontend.semantics.typed import Block, Key
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.types import Sizes


def losses_of(*modules: Module) -> dict[str, Key]:
    """The losses of files by name; of two of one name that of the first file."""
    found: dict[str, Key] = {}
    for module in modules:
        for name in module.known("block"):
            bound = module.find("block", name)
            if bound and getattr(bound.section, "kind", "") == "loss":
                found.setdefault(name, Key(bound.file, bound.section.name.text))
    return found


def loss_fit(
    blocks: Mapping[Key, Block],
    model: Key,
    loss: Key,
    train: ast.Train,
    sizes: Sizes,
    columns: Sequence[str],
) -> Iterator[Diagnostic]:
    """What keeps a model from being trained with equations of its own."""
    seen, wanted = blocks[model].signature, blocks[loss].signature
    first = wanted.inputs[0]
    reason = differs(seen.result, first.kind)
    if reason:
        reason = f"`{first.name}` is {first.kind}, and the model returns {seen.result}"
    for name, _ in blocks[loss].dims:
        if not reason and name not in sizes.dims:
            reason = f"the model has no dim `{name}`"
    known = {"targets": seen.inputs[0].kind, **dict.fromkeys(("weights", *columns), None)}
    for given in wanted.inputs[1:]:
        tokens = known.get(given.name)
        if not reason and given.name not in known:
            reason = f"the data has no column `{given.name}`; its `columns` can name it"
        if not reason and (given.kind.index != (tokens.index if tokens else "")):
            what = f"indices of `{tokens.index}`" if tokens else "numbers"
            reason = f"`{given.name}` is {given.kind}, and the data gives {what}"
        if not reason and set(given.kind.dims) != set(BOUND):
            reason = f"`{given.name}` is {given.kind}, and columns of the data are [batch, seq]"
    if reason:
        yield LossDoesNotFit(train.subject.span, seen.key.name, reason, wanted.span, loss.name)
