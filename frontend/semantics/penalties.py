"""Penalties: what the equations of blocks add to the loss, and which dims it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fllmc.frontend.semantics.expert_rows import expressions
from fllmc.frontend.semantics.typed import Block, Key, Use
from fllmc.frontend.type_errors import BadPenalty
from fllmc.ir.diagnostics import Diagnostic


def penalty_dims(key: Key, blocks: Mapping[Key, Block]) -> tuple[str, ...] | None:
    """The dims of all penalties under a block together, in the order in which they are met.

    None where there is no penalty.
    """
    block = blocks[key]
    found = [step.value.kind.dims for step in block.steps if step.penalty]
    found += [() for _ in block.updates]  # what is recorded goes along, as zeros
    for typed in expressions(block):
        if isinstance(typed.op, Use):
            inner = penalty_dims(block.nested[typed.op.name].block, blocks)
            found += [] if inner is None else [inner]
    if not found:
        return None
    return tuple(dict.fromkeys(name for dims in found for name in dims))


def misfits(blocks: Mapping[Key, Block]) -> Iterator[Diagnostic]:
    """Penalties with a dim that the tokens of their model don't have. No block holds itself."""
    told: set[tuple[Key, str]] = set()
    for key, block in blocks.items():
        if not block.is_model:
            continue
        tokens = token_dims(block)
        for inner in under(key, blocks):
            for step in blocks[inner].steps if tokens else ():
                extra = [name for name in step.value.kind.dims if name not in tokens]
                if step.penalty and extra and (inner, step.name) not in told:
                    told.add((inner, step.name))
                    model, shown = block.signature.key.name, ", ".join(tokens)
                    yield BadPenalty(step.value.span, step.name, extra[0], model, shown)


def token_dims(model: Block) -> tuple[str, ...]:
    """The dims of a model's tokens: those of its result less what its inputs are indices of."""
    of = {given.kind.index for given in model.signature.inputs}
    return tuple(name for name in model.signature.result.dims if name not in of)


def under(key: Key, blocks: Mapping[Key, Block]) -> Iterator[Key]:
    """The block and all that stand in it; one that stands there twice comes twice."""
    yield key
    for nested in blocks[key].nested.values():
        if nested.block in blocks:
            yield from under(nested.block, blocks)
