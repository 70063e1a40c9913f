"""Specs that ship equal the models of `transformers` that they are the specs of."""

from __future__ import annotations

from pathlib import Path

import pytest

from fllmc.ir.diagnostics import DiagnosticError
from tests.oracle import zoo_page
from tests.oracle.zoo import parity
from tests.oracle.zoo_models import ZOO, Entry

pytest.importorskip("transformers")

IN_FULL = ("gpt2", "llama3_8b")
"""Models that the short run compares in fp32 too."""


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.spec)
def test_a_model_is_the_one_of_transformers(model: Entry, tmp_path: Path) -> None:
    model.compared(tmp_path).require()


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=() if model.spec in IN_FULL else pytest.mark.long) for model in ZOO],
    ids=lambda model: model.spec,
)
def test_it_is_in_fp32_too(model: Entry, tmp_path: Path) -> None:
    model.compared(tmp_path, "f32").require()


def test_the_page_is_of_what_ships() -> None:
    """Each model on it is there, and as large as it says."""
    page = zoo_page.PAGE.read_text(encoding="utf-8")
    told = zoo_page.facts(page.splitlines(), columns=3)
    assert told and set(told) <= set(zoo_page.facts(zoo_page.rows(lambda *_: ""), columns=3))


@pytest.mark.long
def test_the_page_tells_of_every_model() -> None:
    """Its figures are measured when it is written; all else is compared."""
    page = zoo_page.PAGE.read_text(encoding="utf-8")
    assert f"transformers {zoo_page.version()}," in page
    assert zoo_page.facts(page.splitlines()) == zoo_page.facts(zoo_page.rows(lambda *_: ""))


def test_another_model_is_refused(tmp_path: Path) -> None:
    """A configuration with another constant is not this spec's."""
    config = next(model for model in ZOO if model.spec == "qwen2").config()
    config.rms_norm_eps = 1e-5
    with pytest.raises(DiagnosticError, match="E0748"):
        parity(config, "qwen2", tmp_path)
