"""Every op has a rule in every table that must know it."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from fllmc.codegen.jax_target import JAX
from fllmc.codegen.torch_elementwise import ELEMENTWISE, HOST
from fllmc.codegen.torch_ops import TORCH
from fllmc.ir.evaluate import EVALUATE
from fllmc.ir.ops import (
    COLLECTIVES,
    OPS,
    AttendGrad,
    Attrs,
    Bucketed,
    Call,
    ConvInput,
    ConvWeight,
    DotAdd,
    Elementwise,
    FromHost,
    Fused,
    LocalSlice,
    MulAdd,
    MulSub,
    Pipeline,
    PutAdd,
    RecurGrad,
    Scan,
    Share,
    SiluGrad,
    ToHost,
    Wait,
)
from fllmc.passes.gradients import GRADIENTS
from fllmc.passes.place.rules import RULES


class Table(NamedTuple):
    """One interpretation's rules, and the ops that it need not know, each with the reason."""

    name: str
    rules: frozenset[type[Attrs]]
    exempt: dict[type[Attrs], str]


SUNK = dict.fromkeys((DotAdd, MulAdd, MulSub, PutAdd), "made of others at the plan level")
PLACED = dict.fromkeys((*COLLECTIVES, LocalSlice, Pipeline, Share), "made where values are placed")
OFFLOADED = dict.fromkeys((FromHost, ToHost, Wait), "made behind placement")

TABLES = (
    Table("evaluator", frozenset(EVALUATE), {Pipeline: "run by ir/evaluate_stages.py"}),
    Table(
        "JAX",
        frozenset(JAX),
        dict.fromkeys(
            (*COLLECTIVES, FromHost, LocalSlice, Pipeline, Share, ToHost, Wait),
            "JAX runs unplaced programs",
        ),
    ),
    Table(
        "torch",
        frozenset(TORCH),
        {
            Call: "calls are inlined",
            Scan: "has a writer of its own",
            Pipeline: "has a writer of its own",
            **dict.fromkeys((Bucketed, Fused), "has a writer of its own"),
        },
    ),
    Table("placement", frozenset(RULES), {Scan: "has a rule of its own", **SUNK}),
    Table(
        "gradients",
        frozenset(GRADIENTS),
        {
            **SUNK,
            **PLACED,
            **OFFLOADED,
            **dict.fromkeys(
                (AttendGrad, ConvInput, ConvWeight, RecurGrad, SiluGrad), "a gradient itself"
            ),
            **dict.fromkeys(
                (Bucketed, Call, Fused), "calls are inlined, and groups are made later"
            ),
            Scan: "has a rule of its own",
        },
    ),
    *(
        Table(
            name,
            frozenset(rules),
            {kind: "not elementwise" for kind in OPS.values() if not issubclass(kind, Elementwise)},
        )
        for name, rules in (("elementwise", ELEMENTWISE), ("host", HOST))
    ),
)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_no_rule_is_missing(table: Table) -> None:
    wanted = {kind for kind in OPS.values() if kind not in table.exempt}
    assert sorted(kind.__name__ for kind in wanted - table.rules) == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_no_rule_is_left_over(table: Table) -> None:
    unknown = table.rules - set(OPS.values())
    assert sorted(kind.__name__ for kind in unknown | (table.rules & set(table.exempt))) == []


@pytest.mark.parametrize("kind", sorted(OPS))
def test_an_op_states_what_it_is(kind: str) -> None:
    definition = OPS[kind]
    assert definition.__doc__
    assert definition.infer is not Attrs.infer
    assert definition.arity >= -1
