"""Sizes of all dims of a run, and what they and the data must fulfil for the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.checking import Checked
from fllmc.frontend.errors import NoSize, SizesDisagree, SizeTwice
from fllmc.frontend.library import Module
from fllmc.frontend.section_errors import LossDoesNotFit, VocabTooSmall
from fllmc.frontend.sections.data import DataSection
from fllmc.frontend.sections.overrides import Overrides
from fllmc.frontend.semantics.expert_rows import along_rows
from fllmc.frontend.semantics.facts import failing
from fllmc.frontend.semantics.sizes import SizeTable, evaluate
from fllmc.frontend.semantics.typed import Block, Key, Requirement
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span
from fllmc.ir.types import Sizes

BOUND = ("batch", "seq")
"""The dims that the data section gives their sizes."""


class Sized(Struct, frozen=True):
    """The sizes of the dims that a model uses, in order of declaration.

    `vocab` is the number of different tokens. With mistakes in `found`, sizes are missing.
    """

    table: SizeTable
    sizes: Sizes
    vocab: int
    found: tuple[Diagnostic, ...]


def check_fit(block: Block, train: ast.Train) -> Iterator[Diagnostic]:
    """What keeps a model from being trained with `cross_entropy` on batches of tokens."""
    seen, reason = block.signature, ""
    first = seen.inputs[0].kind if seen.inputs else None
    if first is None or len(seen.inputs) != 1:
        reason = f"it takes {len(seen.inputs)} inputs instead of one, the tokens"
    elif first.form != "index":
        reason = f"it takes {first}, not indices"
    elif set(first.dims) != set(BOUND):
        reason = f"it takes {first}, not {first.index}[batch, seq]"
    elif set(seen.result.dims) != {*first.dims, first.index}:
        reason = f"it returns {seen.result}, not [batch, seq, {first.index}]"
    if reason:
        yield LossDoesNotFit(train.subject.span, seen.key.name, reason, seen.span)


def sized(
    checked: Checked, module: Module, model: Key, data: DataSection, overrides: Overrides
) -> Sized:
    """Sizes for everything under a model."""
    blocks = list(_under(model, checked.blocks, set()))
    declared = dict(module.dims)
    for name, dim in overrides.dims().items():
        declared[name] = (dim, *declared.get(name, ()))
    bound = {name: size for name, size in _given(data).items() if size and name in declared}
    table = SizeTable(declared, bound)
    found = list(_twice(table, data))
    inputs = checked.blocks[model].signature.inputs
    vocab = inputs[0].kind.index if inputs else ""
    tokens = data.data.vocab
    if vocab and tokens and table.declaration(vocab) is None:
        table.known[vocab] = tokens
    used = {name: place for block in reversed(blocks) for name, place in block.dims}
    sizes = {name: table.size(name) for name in declared if name in used}
    found += table.found
    if not found:
        found += _unsized(sizes, declared, data, vocab)
    known = {name: size for name, size in sizes.items() if size is not None}
    if not found:
        for block in blocks:
            found += _checked(block.requirements, known)
        found += along_rows(blocks)
        found += failing(_facts(checked, blocks), table)
        found += [each for each in table.found if each not in found]
        found += _vocab(table, vocab, known.get(vocab, 0), data)
    known.update(_turns(blocks, known))
    return Sized(table, Sizes(known), tokens or known.get(vocab, 0), tuple(found))


def _under(key: Key, blocks: Mapping[Key, Block], seen: set[Key]) -> Iterator[Block]:
    """The block and all blocks that it contains, each once."""
    if key not in seen:
        seen.add(key)
        yield blocks[key]
        for nested in blocks[key].nested.values():
            yield from _under(nested.block, blocks, seen)


def _turns(blocks: Sequence[Block], sizes: Mapping[str, int]) -> dict[str, int]:
    """The dims over which patterns of layers are run, with the number of whole periods."""
    nested = (each for block in blocks for each in block.nested.values() if each.period)
    counts = {each.turns: sizes.get(each.over, 0) // each.period for each in nested}
    return {turns: count for turns, count in counts.items() if count}


def _facts(checked: Checked, blocks: list[Block]) -> Iterator[ast.Require]:
    """The facts of the main file, of the blocks, and of the files that they stand in."""
    files = dict.fromkeys((checked.library.main, *(block.signature.key.file for block in blocks)))
    for file in files:
        for section in checked.library.modules[file].tree.sections:
            if isinstance(section, ast.Require):
                yield section
    for block in blocks:
        yield from block.facts


def _given(data: DataSection) -> dict[str, int]:
    return {"batch": data.data.batch, "seq": data.data.seq}


def _twice(table: SizeTable, data: DataSection) -> Iterator[Diagnostic]:
    places = {"batch": data.batch, "seq": data.seq}
    for name, size in _given(data).items():
        declaration = table.declaration(name)
        if size and declaration is not None:
            reason = f"data `{data.data.name}` gives it {size}"
            yield SizeTwice(places[name], name, reason, declaration.span)


def _unsized(
    sizes: Mapping[str, int | None],
    declared: Mapping[str, tuple[ast.Dim, ...]],
    data: DataSection,
    vocab: str,
) -> Iterator[Diagnostic]:
    for name, size in sizes.items():
        if size is not None:
            continue
        place: Span = declared[name][0].span
        reason, way = "`dims` declares it without a size", f"{name} = SIZE"
        if name in BOUND:
            reason = f"neither `dims` nor data `{data.data.name}` gives one"
            place, way = data.name, f"{name}: SIZE"
        elif name == vocab:
            reason = f"the tokenizer {data.data.tokenizer} doesn't tell it here"
        yield NoSize(place, name, reason, way)


def _windows(need: Requirement, sizes: Mapping[str, int]) -> Iterator[Diagnostic]:
    """A number of windows that is not as their stride and the zeros around make it."""
    along, taps, *word = need.b.split()
    width = sizes[taps]
    stride, pad = (
        evaluate(each, lambda ref: sizes[ref.name], f"`{key}` of `conv`")
        for key, each in zip(("stride", "pad"), need.numbers, strict=True)
    )
    if stride != int(stride) or stride < 1 or pad != int(pad) or not 0 <= pad < width:
        what = f"`stride` must be whole and above 0, and `pad` whole and below `{taps}`"
        shown = f"here they are {stride:.10g} and {pad:.10g}, and `{taps}` is {width}"
        yield SizesDisagree(need.span, what, shown)
        return
    zeros = width - 1 if word else 2 * int(pad)
    fit = (sizes[along] + zeros - width) // int(stride) + 1
    if sizes[need.a] != fit:
        what = f"`{need.a}` must have a place for each window along `{along}`"
        shown = f"`{need.a}` is {sizes[need.a]}, and {fit} windows fit"
        yield SizesDisagree(need.span, what, shown)


def _checked(
    requirements: tuple[Requirement, ...], sizes: Mapping[str, int]
) -> Iterator[Diagnostic]:
    for need in requirements:
        a, b = sizes[need.a], sizes.get(need.b, 0)
        factors = need.b.split() if need.rule in ("product", "parts") else []
        if need.rule == "windows":
            yield from _windows(need, sizes)
        if need.rule == "divides" and b % a:
            what = f"`{need.a}` must divide `{need.b}`"
            yield SizesDisagree(need.span, what, f"`{need.a}` is {a}, `{need.b}` is {b}")
        elif need.rule == "even" and a % 2:
            what = f"`rope` turns pairs, so `{need.a}` must be even"
            yield SizesDisagree(need.span, what, f"`{need.a}` is {a}")
        elif need.rule == "same" and a != b:
            what = f"`{need.a}` and `{need.b}` must have one size"
            yield SizesDisagree(need.span, what, f"`{need.a}` is {a}, `{need.b}` is {b}")
        elif need.rule == "at_most" and a > b:
            what = f"no more than all of `{need.b}` can be chosen"
            yield SizesDisagree(need.span, what, f"`{need.a}` is {a}, `{need.b}` is {b}")
        elif need.rule == "sum" and a != sum(sizes[name] for name in need.b.split()):
            what = (
                f"`{need.a}` must be as large as its parts together, {' + '.join(need.b.split())}"
            )
            shown = ", ".join(f"`{name}` is {sizes[name]}" for name in need.b.split())
            yield SizesDisagree(need.span, what, f"`{need.a}` is {a}, {shown}")
        elif need.rule == "distances" and a != sum(sizes[n] for n in need.b.split()) - 1:
            keys, queries = need.b.split()
            what = f"the bias needs each distance, so `{need.a}` must be {keys} + {queries} - 1"
            shown = f"`{keys}` is {sizes[keys]}, `{queries}` is {sizes[queries]}"
            yield SizesDisagree(need.span, what, f"`{need.a}` is {a}, {shown}")
        elif need.rule == "at_most_of" and a > b:
            what = f"each of `{need.a}` needs a position in `{need.b}` under a mask or window"
            yield SizesDisagree(need.span, what, f"`{need.a}` is {a}, `{need.b}` is {b}")
        elif factors and a != prod(sizes[name] for name in factors):
            must = (
                "have a row for each choice"
                if need.rule == "product"
                else "be as large as its parts"
            )
            what = f"`{need.a}` must {must}, {' * '.join(factors)}"
            shown = ", ".join(f"`{name}` is {sizes[name]}" for name in factors)
            yield SizesDisagree(need.span, what, f"`{need.a}` is {a}, {shown}")


def _vocab(table: SizeTable, vocab: str, size: int, data: DataSection) -> Iterator[Diagnostic]:
    declaration = table.declaration(vocab)
    if declaration is not None and 0 < size < data.data.vocab:
        tokens = data.data.vocab
        yield VocabTooSmall(data.tokenizer, vocab, size, tokens, declaration.span)
