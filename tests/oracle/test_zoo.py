"""Specs that ship equal the models of `transformers` that they are the specs of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle.zoo import parity
from tests.oracle.zoo_models import ZOO, Entry

pytest.importorskip("transformers")

IN_FULL = ("gpt2", "llama3_8b")
"""Models that the short run compares in fp32 too."""


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.spec)
def test_a_model_is_the_one_of_transformers(model: Entry, tmp_path: Path) -> None:
    parity(model.config(), model.spec, tmp_path, seq=model.seq).require()


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=() if model.spec in IN_FULL else pytest.mark.long) for model in ZOO],
    ids=lambda model: model.spec,
)
def test_it_is_in_fp32_too(model: Entry, tmp_path: Path) -> None:
    parity(model.config(), model.spec, tmp_path, dtype="f32", seq=model.seq).require()
