"""recompute: the fewest bytes are kept, directives are obeyed, and the numbers stay the same."""

from itertools import combinations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.settings import Recompute as Directive
from fllmc.passes.base import Context
from fllmc.passes.cut import Choices, values_to_keep
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.errors import NothingToRecompute, RecomputesNothing
from fllmc.passes.place.place import Place
from fllmc.passes.recompute import Recompute
from fllmc.passes.recompute_stacks import scan_of
from fllmc.passes.share_equal import ShareEqual
from tests.passes.place_programs import MEGATRON, arguments, llama, mesh
from tests.passes.stack_programs import applied, equal, training_program

EMBED_BYTES = 2 * 4 * 6 * 4
FFN_BYTES = 2 * 4 * 8 * 4


def saved(program: Program) -> tuple[list[str], int]:
    """Names of what the forward body stacks, and its bytes for one layer."""
    (scan, *_) = [op for op in program.function("step").ops if op.kind == "scan"]
    body = program.function(scan_of(scan).function)
    carries = scan_of(scan).carries
    kinds = [body.types[value] for value in body.results[carries:]]
    return list(body.outputs[carries:]), sum(map(program.sizes.local_bytes, kinds))


def recomputed(step: Recompute) -> Program:
    before = training_program()
    after = applied(step, before)
    equal(before, after, "step")
    assert applied(DropUnused(), after) == after
    return after


def test_cheap_ops_are_recomputed_for_the_fewest_bytes() -> None:
    after = recomputed(Recompute())
    assert saved(after) == (["n", "u"], EMBED_BYTES + FFN_BYTES)
    assert [op.path for op in after.function("layer.grad").ops if op.path] == ["mlp.silu"] * 2


def test_nothing_is_recomputed_unless_told() -> None:
    after = recomputed(Recompute(cheap=False))
    assert after == training_program()


def test_a_selected_stack_keeps_its_inputs_alone() -> None:
    after = recomputed(Recompute((Directive("body.*"),), cheap=False))
    names, size = saved(after)
    assert (names, size) == (["kept0"], EMBED_BYTES)
    paths = [op.path for op in after.function("layer.grad").ops if op.path]
    assert paths == ["norm", "norm", "mlp.up", "mlp.silu", "mlp.silu"]


def test_kept_paths_are_kept() -> None:
    after = recomputed(Recompute((Directive("body.*", ("mlp.up",)),)))
    assert saved(after) == (["kept0", "u"], EMBED_BYTES + FFN_BYTES)
    after = recomputed(Recompute((Directive("body.*", ("body.*.mlp.{up, silu}",)),), cheap=False))
    assert saved(after) == (["kept0", "u", "s", "h"], EMBED_BYTES + 3 * FFN_BYTES)


def test_a_part_of_the_layer() -> None:
    after = recomputed(Recompute((Directive("body.*.mlp"),), cheap=False))
    assert saved(after) == (["n"], EMBED_BYTES)


def computed(program: Program, path: str) -> int:
    """How often the op at a path is done outside of the stack."""
    ops = program.function("step").ops
    return sum(op.path == path and op.kind not in ("fill", "stop") for op in ops)


def test_values_before_the_stack() -> None:
    after = recomputed(Recompute((Directive("shift"),), cheap=False))
    assert saved(after) == saved(training_program())
    assert computed(after, "shift") == computed(applied(ShareEqual(), after), "shift") == 2


def test_every_choice_of_residuals_is_right_if_scans_share_a_body() -> None:
    one = training_program()
    twin = msgspec.structs.replace(one.function("step"), name="twin")
    before = msgspec.structs.replace(one.with_functions(twin), entries=("step", "twin"))
    after = applied(Recompute((Directive("body.*"),)), before)
    for entry in ("step", "twin"):
        equal(before, after, entry)
    assert saved(after)[1] == EMBED_BYTES


@pytest.mark.parametrize(
    ("directive", "word", "help"),
    [
        (Directive("bodi.*"), "bodi.*", "`body.*`"),
        (Directive("body.*.mlp.upp"), "body.*.mlp.upp", "`body.*.mlp.up`"),
        (Directive("body.*", ("mlp.gate",)), "mlp.gate", "paths are"),
        (Directive("body.1"), "body.1", "`body.*`"),
    ],
)
def test_selectors_of_nothing(directive: Directive, word: str, help: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        applied(Recompute((directive,)), training_program())
    (found,) = caught.value.diagnostics
    assert isinstance(found, RecomputesNothing)
    assert found.selector == word
    assert help in " ".join(found.helps())


def test_what_comes_behind_the_stacks_is_left_alone() -> None:
    before = training_program()
    function = before.function("step")
    ops = (*function.ops[:-1], msgspec.structs.replace(function.ops[-1], path="head"))
    before = before.with_functions(msgspec.structs.replace(function, ops=ops))
    said: list[Diagnostic] = []
    after = applied(Recompute((Directive("head"),), cheap=False), before, said)
    assert [type(d) for d in said] == [NothingToRecompute]
    assert after == before


def brute(choices: Choices) -> int:
    """The least cost over all sets of values that suffice."""
    count = len(choices.costs)
    makers: dict[int, list[int]] = {}
    for a, b in choices.feeds:
        makers.setdefault(b, []).append(a)

    def enough(kept: set[int]) -> bool:
        todo, seen = list(choices.wanted), set[int]()
        while todo:
            value = todo.pop()
            if value in kept or value in seen:
                continue
            if value in choices.fixed:
                return False
            seen.add(value)
            todo.extend(makers.get(value, []))
        return True

    keepable = [v for v in range(count) if choices.costs[v] is not None]
    sets = (set(s) for size in range(len(keepable) + 1) for s in combinations(keepable, size))
    return min(sum(choices.costs[v] or 0 for v in s) for s in sets if enough(s))


@st.composite
def all_choices(draw: st.DrawFn) -> Choices:
    count = draw(st.integers(2, 7))
    fixed = {v for v in range(count) if v == 0 or draw(st.booleans())}
    feeds = tuple(
        (a, b) for b in range(count) for a in range(b) if b not in fixed and draw(st.booleans())
    )
    costs = tuple(
        draw(st.integers(0, 5)) if v in fixed or draw(st.booleans()) else None for v in range(count)
    )
    wanted = tuple(draw(st.lists(st.integers(0, count - 1), min_size=1)))
    return Choices(costs, frozenset(fixed), feeds, wanted)


@given(all_choices())
def test_the_cut_is_minimal(choices: Choices) -> None:
    kept = values_to_keep(choices)
    assert all(choices.costs[v] is not None for v in kept)
    assert sum(choices.costs[v] or 0 for v in kept) == brute(choices)


def test_of_equal_cuts_the_one_that_recomputes_least_is_taken() -> None:
    chain = Choices((8, 8, 8), frozenset({0}), ((0, 1), (1, 2)), (2,))
    assert values_to_keep(chain) == {2}
    cheaper = Choices((8, 4, 8), frozenset({0}), ((0, 1), (1, 2)), (2,))
    assert values_to_keep(cheaper) == {1}
    free = Choices((0, 4, 8), frozenset({0}), ((0, 1), (1, 2)), (2,))
    assert values_to_keep(free) == {0}


@pytest.mark.parametrize(
    ("step", "names"),
    [
        (Recompute(), ["x", "h", "q", "k", "v", "o", "lse"]),
        (Recompute((Directive("embedding.*"),)), ["x"]),
        (Recompute((Directive("embedding.*.attn"),)), ["x"]),
        (Recompute((Directive("embedding.*", ("attn",)),)), ["x", "h", "q", "k", "v", "o", "lse"]),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_small_llama(step: Recompute, names: list[str], sharded: bool) -> None:
    """Its forward scan stands under the path `embedding`; `h` is a sum of `x` and a product."""
    before = llama()
    if sharded:
        before = Place(MEGATRON).run(before, Context(mesh(2, 2), [].append))
    after = applied(step, before)
    scan = next(op for op in after.function(body_of(after)).ops if op.kind == "scan")
    outputs = after.function(scan_of(scan).function).outputs
    assert sorted(outputs[1:]) == sorted(names)
    given = arguments(before)
    first, second = evaluate(before, "step", given), evaluate(after, "step", given)
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name


def body_of(program: Program) -> str:
    """The body of the scan over microbatches."""
    (scan,) = [op for op in program.function("step").ops if op.kind == "scan"]
    return scan_of(scan).function
