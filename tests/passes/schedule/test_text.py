"""Timetables print, parse back, and are drawn."""

from __future__ import annotations

import re

import pytest

from fllmc.codegen.timetable_chart import timetable_svg
from fllmc.passes.schedule.costs import uniform
from fllmc.passes.schedule.families import FAMILIES
from fllmc.passes.schedule.simulate import simulate
from fllmc.passes.schedule.text import parse_timetable, picture, print_timetable


@pytest.mark.parametrize("kind", FAMILIES)
def test_text_parses_back(kind: str) -> None:
    table = FAMILIES[kind](4, 8, 2 if kind in ("interleaved", "breadth_first", "zb_v") else 1)
    assert parse_timetable(print_timetable(table)) == table


@pytest.mark.parametrize(
    "text",
    ["", "timetable x", "timetable 1f1b: ranks 2, micros 1, homes 0 1\n0: F0.0\n", "0: F0.0"],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"timetable|rows"):
        parse_timetable(text)


def test_a_row_of_another_rank_is_refused() -> None:
    text = print_timetable(FAMILIES["1f1b"](2, 2, 1)).replace("1:", "7:").replace("B1.0", "X1.0")
    with pytest.raises(ValueError, match="row of rank 1"):
        parse_timetable(text)


def test_the_picture_has_a_column_for_each_unit_of_time() -> None:
    found = simulate(FAMILIES["1f1b"](2, 3, 1), uniform(2, weight=0.0))
    assert picture(found) == [
        "  0 F0 F1  . B0 F2 B1  . B2",
        "  1  . F0 B0 F1 B1 F2 B2  .",
    ]


def test_the_drawing_has_a_box_for_each_action_and_runs_nothing() -> None:
    table = FAMILIES["zb_v"](2, 4, 2)
    svg = timetable_svg(simulate(table, uniform(4)).timeline, "a <b> & c", "ms")
    assert svg.count("micro-batch") == sum(map(len, table.rows))
    assert "a &lt;b&gt; &amp; c" in svg
    assert not re.search(r"<script|href|on\w+=", svg)
