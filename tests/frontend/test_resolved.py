"""A spec with every default written out is the same spec, and hides nothing."""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec
import pytest

from fllmc.frontend import load
from fllmc.frontend.format import format_source
from fllmc.frontend.library import SHIPPED, shipped
from fllmc.frontend.resolved_fields import data_fields, schedule_fields, train_fields
from fllmc.frontend.resolving import resolve
from fllmc.frontend.sections.train import TrainSection
from fllmc.ir import settings
from fllmc.ir.render import render
from fllmc.ir.settings import Data, Schedule, Spec
from fllmc.ir.text import print_program
from tests.frontend.test_lower import SHAPE

FILES = [f"{SHIPPED}{kind}/{name}.fllm" for kind in ("models", "recipes") for name in shipped(kind)]
PLACES = frozenset({"span", "places", "sources", "program", "param_span"})


def same(spec: Spec) -> tuple[str, Any, Any]:
    """All of a spec that a plan depends on: no places."""
    mapped = {p.name: (p.type, p.init, p.decays, p.plain) for p in spec.program.parameters}
    text = re.sub(r" !\d+", "", print_program(spec.program).split("\nspans")[0])
    return text, mapped, placeless(msgspec.to_builtins(spec))


def placeless(value: Any) -> Any:
    """Plain values without what says where they stand."""
    if isinstance(value, dict):
        return {key: placeless(each) for key, each in value.items() if key not in PLACES}
    if isinstance(value, list | tuple):
        return [placeless(each) for each in value]
    return value


def loaded(path: str, text: str | None = None) -> Spec:
    spec, found, sources = load(path, text=text)
    assert spec is not None, render(found, sources)
    return spec


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.split("/")[-1])
def test_every_shipped_spec_stays_what_it_is(path: str) -> None:
    if load(path, needs_run=False)[0] is None:
        return  # a library of blocks: nothing to run
    text = resolve(path)
    assert "import" not in re.sub(r'"[^"]*"|#.*', "", text)
    assert format_source(text) == text
    assert same(loaded(path, text)) == same(loaded(path))
    assert resolve(path, text=text) == text


SPEC = f"""{SHAPE} }}

block layer(x: [batch, seq, embed]) -> [batch, seq, embed] {{
  param wq: embed -> (heads, head_dim)
  param wk: embed -> (kv_heads, head_dim)
  param wo: (heads, head_dim) -> embed

  k = rope(wk(x), along: seq)
  y = gelu(rms_norm(x, over: embed))
  return wo(attend(rope(wq(y), along: seq), k, k, along: seq))
}}

model m(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {{
  param table: vocab -> embed
  sub only: layer

  return table.T(only(table(tokens)))
}}

data prose {{
  source: "a/*.txt"
  fim: fim(rate: 0.25)
}}

data talk {{ source: "b/*.jsonl" pack: whole }}

data both {{
  source: mix(prose: 1, talk: 2)
  batch: 2
  seq: 4
}}

adapter few on m {{
  freeze *
  quantize only.wo
  lora only.{{wq, wk}} {{ rank: 4 }}
}}

train run: few {{
  data: both
  loss: cross_entropy()
  optimizer: adamw()
  rate: cosine(peak: 1e-3)
  steps: 4k tokens
}}

schedule s for run {{
  pipeline: auto(chunks: 2)
}}
"""
STATED = (
    "theta: 10000", "layout: half", "approximate: none", "eps: 1e-5", "mask: causal",
    "scale: 0.7071067811865475", "normal(std: 1 / sqrt(heads * head_dim))", "normal(std: 0.02)",
    "betas: (0.9, 0.999)", "weight_decay:", "floor: 0", "warmup: 0", "holdout: 0.1",
    'fim(rate: 0.25, spm: 0.5, prefix: "<fim_prefix>"', "alpha: 4", "dropout: 0", "bits: 4",
    "block: 64", "z_loss: 0", "policy(params: f32, compute: f32, reduce: f32)", "tokenizer: bytes",
    "auto(chunks: 2, memory: 0, exact: false)", "overlap: on", "clip: 0", "log_every: 10",
)  # fmt: skip


def test_what_is_left_out_is_stated() -> None:
    text = resolve("a.fllm", text=SPEC)
    flat = re.sub(r"\s+", " ", text).replace("( ", "(")
    assert [each for each in STATED if each not in flat] == []
    assert same(loaded("a.fllm", text)) == same(loaded("a.fllm", SPEC))


WRITTEN = {
    Data: {"name", "source", "batch", "seq", "vocab", "folder", "span", "parts", "weights"},
    settings.Train: {
        "name",
        "model",
        "span",
        "stage",
        "begin",
        "first_sample",
        "rate_begin",
        "rate_steps",
    },
    Schedule: {"name", "shards", "recompute", "zero", "offload", "compress", "places"},
}
"""Settings that the text always says: names, sizes, directives; or that say where it stands."""
CALLED = {"budget_gib": "budget", "host_gib": "host"}


STAGED = """  stage warm {
    data: prose
    batch: ramp(2, 4)
    seq: 8
    steps: 4k tokens
  }

  stage last {
    data: both
    freeze: [table]
    rate: linear(peak: 1e-4)
    steps: 20
  }
}

schedule"""


def test_stages_are_stated_too() -> None:
    text = SPEC.replace("  data: both\n  loss", "  loss").replace(
        "  steps: 4k tokens\n}\n\nschedule", STAGED
    )
    text = text.replace("run: few", "run: m")
    written = resolve("a.fllm", text=text)
    assert "linear(peak: 0.0001, floor: 0, warmup: 0)" in written
    assert "cosine(peak: 0.001, floor: 0, warmup: 0)" in written
    spec = loaded("a.fllm", text)
    assert len(spec.later) == 2 and same(loaded("a.fllm", written)) == same(spec)
    assert resolve("a.fllm", text=written) == written


def test_every_setting_has_a_field() -> None:
    spec = loaded("a.fllm", SPEC)
    nothing = TrainSection(spec.train, None, None, None, (), ())
    given = (
        (Data, data_fields(Data("d", "s", 1, 1), part=False)),
        (settings.Train, train_fields(spec, nothing)),
        (Schedule, schedule_fields(Schedule())),
    )
    for kind, fields in given:
        names = {CALLED.get(name, name) for name in kind.__struct_fields__}
        assert names - WRITTEN[kind] - set(fields) == set(), kind
    text = resolve("a.fllm", text=SPEC)
    for kind in (settings.Chat, settings.FillMiddle, settings.Pipeline, settings.Precision):
        for name in set(kind.__struct_fields__) - {"kind", "span"}:
            assert re.search(rf"\b{name}:", text), (kind, name)
    assert set(get_args(settings.Pack)) == {"stream", "documents", "whole"}


def test_blocks_of_one_name_are_told_apart(tmp_path: Any) -> None:
    (tmp_path / "own.fllm").write_text(
        "fllm 1\n\ndims { batch seq embed }\n\n"
        "block norm(x: [batch, seq, embed]) -> [batch, seq, embed] { return 2 * x }\n\n"
        "block twice(x: [batch, seq, embed]) -> [batch, seq, embed] { sub a: norm\n return a(x) }\n"
    )
    (tmp_path / "main.fllm").write_text(
        'fllm 1\n\nimport "own.fllm" (twice)\nimport "library/transformer.fllm" (norm)\n\n'
        "dims { batch seq vocab embed = 8 heads = 1 kv_heads = 1 ffn = 2 layers = 1 }\n\n"
        "model m(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {\n"
        "param table: vocab -> embed\n sub n: norm\n sub t: twice\n"
        "return table.T(t(n(table(tokens)))) }\n\n"
        'data d { source: "x.txt" batch: 2 seq: 4 }\n\n'
        "train run: m { data: d loss: cross_entropy() optimizer: sgd() "
        "rate: constant(peak: 0.1) steps: 1 }\n"
    )
    path = str(tmp_path / "main.fllm")
    text = resolve(path)
    assert "block norm_2(" in text
    again, first = same(loaded(path, text)), same(loaded(path))
    assert again[0].replace("norm.2", "norm_2") == first[0].replace("norm.2", "norm_2")
    assert again[2] == first[2]
