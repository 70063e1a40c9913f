"""Lowered programs: their form, what they compute, and the settings of runs."""

import math

import numpy as np
import pytest

from fllmc.frontend import load, load_spec
from fllmc.frontend.lowering.model import LOOKUP_STD
from fllmc.ir.evaluate import evaluate
from fllmc.ir.ops import Call, Scan
from fllmc.ir.program import Init, Program
from fllmc.ir.settings import Lora, Precision, Spec
from fllmc.ir.text import parse_program, print_program
from fllmc.ir.types import Type
from fllmc.ir.verify import verify
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.base import Context
from fllmc.passes.inline import Inline

SHAPE = (
    "fllm 1\ndims { batch seq vocab = 256 embed = 8 heads = 4 kv_heads = 2 head_dim = 2 ffn = 6 "
)
REST = """
data text { source: "builtin:pydocs" batch: 2 seq: 3 }
train run: m {
  data: text
  loss: cross_entropy()
  optimizer: OPTIMIZER
  rate: RATE
  steps: 10
}
"""
HEAD = "model m(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {\n"


def lowered(
    body: str, before: str = "", optimizer: str = "sgd()", rate: str = "constant(peak: 1)"
) -> Spec:
    """A model with this body."""
    rest = REST.replace("OPTIMIZER", optimizer).replace("RATE", rate)
    spec, found, _ = load("a.fllm", text=f"{SHAPE} }}\n{before}{HEAD}{body}\n}}\n{rest}")
    assert spec is not None, found
    verify(spec.program)
    return spec


def arguments(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for the inputs of the model."""
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    function = program.function("model")
    for given, kind in zip(function.inputs, function.types, strict=False):
        shape = program.sizes.shape(kind)
        index = random.integers(0, program.sizes.size(kind.index), shape) if kind.index else None
        found[given.name] = random.standard_normal(shape) if index is None else index
    return found


def types(kinds: tuple[Type, ...]) -> list[str]:
    return [str(kind) for kind in kinds]


# Form.


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt", "llama3_8b", "gpt2", "quickstart"])
def test_programs_verify_and_print(name: str) -> None:
    program = load_spec(name)[0].program
    verify(program)
    assert parse_program(print_program(program)) == program


def test_the_model_takes_parameters_then_data() -> None:
    program = load_spec("tiny_llama")[0].program
    model = program.function("model")
    names = [p.name for p in program.parameters]
    assert [given.name for given in model.inputs] == [*names, "tokens"]
    assert [given.role for given in model.inputs] == ["param"] * len(names) + ["data"]
    assert model.outputs == ("out",)
    assert types(model.signature.results) == ["f32[batch, seq, vocab]"]
    assert program.entries == ("model",)
    scan = next(op for op in model.ops if isinstance(op.attrs, Scan))
    assert scan.attrs == Scan("layer", "layers", 1, 9)
    assert scan.path == "body"
    assert program.parameter("body.attn.wq").layer_name(1) == "body.1.attn.wq"
    paths = [op.path for op in program.function("layer").ops if isinstance(op.attrs, Call)]
    assert paths == ["attn_norm", "attn", "mlp_norm", "mlp"]


def test_a_stack_may_share_values_with_all_layers() -> None:
    before = """
block mix(x: [batch, seq, embed], first: [batch, seq, embed]) -> [batch, seq, embed] {
  param w: embed -> embed
  return w(x) * 0.5 + first
}
"""
    body = "param e: vocab -> embed\nstack body: mix over kv_heads\nh = e(tokens)\n"
    program = lowered(body + "return e.T(body(h, h))", before).program
    given = arguments(program)
    h = given["e"][given["tokens"]]
    x = h
    for w in given["body.w"]:
        x = x @ w * 0.5 + h
    out = evaluate(program, "model", given)["out"]
    np.testing.assert_allclose(out, x @ given["e"].T, rtol=1e-12)


def test_blocks_of_one_name_in_two_files_are_told_apart() -> None:
    before = """
import "library/transformer.fllm" (layer)
block norm(x: [batch, seq, embed]) -> [batch, seq, embed] { return x / 2 }
"""
    body = "param e: vocab -> embed\nsub n: norm\nsub l: layer\nreturn e.T(n(l(e(tokens))))"
    names = [function.name for function in lowered(body, before).program.functions]
    assert {"norm", "norm.2"} <= set(names)


def test_how_parameters_begin() -> None:
    body = """
param a: vocab -> embed
param b: (heads, head_dim) -> embed
param c: embed -> vocab = normal(std: 0.1 / sqrt(2 * embed))
param d: [embed] = ones()
param e: [embed] = zeros()
param f: embed -> (heads, head_dim)
return c(a(tokens) * d + e + b(f(a(tokens))))
"""
    begun = {p.name: p.init for p in lowered(body).program.parameters}
    assert begun["a"] == Init("normal", LOOKUP_STD)
    assert begun["b"] == Init("normal", 1 / math.sqrt(8))
    assert begun["c"] == Init("normal", 0.1 / 4)
    assert (begun["d"], begun["e"]) == (Init("ones"), Init("zeros"))


def test_updates_are_on_maps_and_not_on_plain_tensors() -> None:
    body = """
param a: vocab -> embed
param w: [embed, heads, head_dim] = ones()
param f: (heads, head_dim) -> embed
return a.T(f(dot[embed](a(tokens), w)))
"""
    spec = lowered(body)
    assert [p.name for p in spec.program.parameters if p.plain] == ["w"]
    flat = Inline().run(spec.program, Context(spec.program.mesh, [].append))
    adapter = ApplyAdapter(lora=(Lora("*", 2, 4.0),))
    adapted = adapter.run(flat, Context(flat.mesh, [].append))
    assert {p.updates for p in adapted.parameters} == {"", "a", "f"}


def test_precision_is_cast_at_the_border_of_each_use() -> None:
    spec, _ = load_spec("tiny_gpt", {"train.precision": "policy(params: f32, compute: bf16)"})
    program = spec.program
    assert str(program.parameter("embedding").type) == "f32[vocab, embed]"
    assert types(program.function("model").signature.results) == ["bf16[batch, seq, vocab]"]
    norm = program.function("layer_norm")
    assert {str(kind.dtype) for kind in norm.types} == {"bf16", "f32", "f64"}


# Meaning.


def test_arrows_in_every_use() -> None:
    body = """
param e: vocab -> embed
param sq: embed -> embed
param w: embed -> (heads, head_dim)
h = e(tokens)
return e.T(sq(h) + sq.T(h) + w.T(w(h)))
"""
    program = lowered(body).program
    given = arguments(program)
    h, sq, w = given["e"][given["tokens"]], given["sq"], given["w"].reshape(8, 8)
    wanted = (h @ sq + h @ sq.T + h @ w @ w.T) @ given["e"].T
    np.testing.assert_allclose(evaluate(program, "model", given)["out"], wanted, rtol=1e-11)


def test_lookup_with_a_dim_on_both_sides() -> None:
    body = "param e: vocab -> vocab\nreturn e(tokens)"
    program = lowered(body).program
    given = arguments(program)
    out = evaluate(program, "model", given)["out"]
    np.testing.assert_array_equal(out, given["e"][given["tokens"]])


def _softmax(x: np.ndarray) -> np.ndarray:
    exponents = np.exp(x - x.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


ERF = np.vectorize(math.erf)
COMPOSITES = {
    "softmax(h, over: embed)": _softmax,
    "log_softmax(h, over: embed)": lambda h: np.log(_softmax(h)),
    "logsumexp(h, over: embed) + 0 * h": lambda h: np.log(np.exp(h).sum(-1))[..., None] + 0 * h,
    "mean[embed](h) + 0 * h": lambda h: h.mean(-1)[..., None] + 0 * h,
    "rms_norm(h, over: embed, eps: 0.1)": lambda h: h / np.sqrt((h**2).mean(-1) + 0.1)[..., None],
    "layer_norm(h, over: embed, eps: 0.1)": lambda h: (
        (h - h.mean(-1)[..., None]) / np.sqrt(h.var(-1) + 0.1)[..., None]
    ),
    "silu(h)": lambda h: h / (1 + np.exp(-h)),
    "swiglu(h, h + 1)": lambda h: h / (1 + np.exp(-h)) * (h + 1),
    "relu(h)": lambda h: np.maximum(h, 0),
    "gelu(h)": lambda h: h * (1 + ERF(h / math.sqrt(2))) / 2,
    "gelu(h, approximate: tanh)": lambda h: (
        h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) / 2
    ),
    "abs(h) + sign(h) ^ 3": lambda h: np.abs(h) + np.sign(h),
    "h + where(less(h, 0), 2, 3)": lambda h: h + np.where(h < 0, 2, 3),
    "where(less(h, 0.5), h, min(h, pi) ^ 2)": lambda h: np.where(
        h < 0.5, h, np.minimum(h, math.pi) ** 2
    ),
    "max[embed](h) - h * embed": lambda h: h.max(-1)[..., None] - h * 8,
}


@pytest.mark.parametrize("expression", COMPOSITES)
def test_composites(expression: str) -> None:
    body = f"param e: vocab -> embed\nh = e(tokens)\nreturn e.T({expression})"
    program = lowered(body).program
    given = arguments(program)
    wanted = COMPOSITES[expression](given["e"][given["tokens"]]) @ given["e"].T
    np.testing.assert_allclose(evaluate(program, "model", given)["out"], wanted, rtol=1e-10)


def test_attention_is_what_its_equations_say() -> None:
    params = """
param e: vocab -> embed
param w: embed -> (heads, head_dim)
h = e(tokens)
q = w(h)
"""
    short = "y = attend(q, q, q * 2, along: seq, mask: none)\n"
    long = """
k = q{seq = key}
p = softmax(dot[head_dim](q, k) / sqrt(head_dim), over: key)
y = dot[key](p, k * 2)
"""
    outs = []
    for middle in (short, long):
        text = f"{SHAPE} key = seq }}\n{HEAD}{params}{middle}return e.T(w.T(y))\n}}\n"
        rest = REST.replace("OPTIMIZER", "sgd()").replace("RATE", "constant(peak: 1)")
        spec, found, _ = load("a.fllm", text=text + rest)
        assert spec is not None, found
        outs.append(evaluate(spec.program, "model", arguments(spec.program))["out"])
    np.testing.assert_allclose(outs[0], outs[1], rtol=1e-11)


# Optimizers and rates.

BODY = "param e: vocab -> embed\nreturn e.T(e(tokens))"
AT = {"param": 0.5, "grad": -0.25, "rate": 0.01, "step": 3.0}


def updated(optimizer: str, **states: float) -> dict[str, float]:
    program = lowered(BODY, optimizer=optimizer).program
    found = evaluate(program, "optimizer", {**AT, **states})
    return {name: float(value) for name, value in found.items()}


def test_adamw_follows_its_paper() -> None:
    found = updated("adamw(betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1)", m=0.1, v=0.2)
    m, v = 0.9 * 0.1 + 0.1 * -0.25, 0.95 * 0.2 + 0.05 * 0.0625
    step = m / (1 - 0.9**3) / (math.sqrt(v / (1 - 0.95**3)) + 1e-8)
    wanted = {"param": 0.5 - 0.01 * (step + 0.1 * 0.5), "m": m, "v": v}
    assert found == pytest.approx(wanted, rel=1e-13)


def test_lion_and_sgd() -> None:
    found = updated("lion(weight_decay: 0.1)", m=0.01)
    assert found["param"] == pytest.approx(0.5 - 0.01 * (-1 + 0.05))
    found = updated("sgd(momentum: 0.9, nesterov: true)", m=0.1)
    m = 0.9 * 0.1 - 0.25
    assert found == pytest.approx({"param": 0.5 - 0.01 * (-0.25 + 0.9 * m), "m": m})


def test_without_decay_nothing_of_it_is_left() -> None:
    program = lowered(BODY, optimizer="adamw(weight_decay: 0.1)").program
    plain = lowered(BODY, optimizer="adam()").program.function("optimizer")
    left = program.function("optimizer.no_decay")
    assert len(left.ops) == len(plain.ops)
    assert evaluate(program, "optimizer.states", {}) == {"m": 0.0, "v": 0.0}


def rate_at(rate: str, step: float, steps: float = 100) -> float:
    program = lowered(BODY, rate=rate).program
    return float(evaluate(program, "rate", {"step": step, "steps": steps})["rate"])


@pytest.mark.parametrize(
    ("rate", "step", "wanted"),
    [
        ("cosine(peak: 1, floor: 0.1, warmup: 10)", 5, 0.5),
        ("cosine(peak: 1, floor: 0.1, warmup: 10)", 10, 1),
        ("cosine(peak: 1, floor: 0.1, warmup: 10)", 55, 0.55),
        ("cosine(peak: 1, floor: 0.1, warmup: 10)", 100, 0.1),
        ("linear(peak: 2, warmup: 0)", 50, 1),
        ("linear(peak: 2, warmup: 200)", 50, 0.5),
        ("constant(peak: 3)", 1, 3),
        ("inverse_sqrt(peak: 2, warmup: 16)", 8, 1),
        ("inverse_sqrt(peak: 2, warmup: 16)", 64, 1),
        ("polynomial(peak: 1, floor: 0.2, warmup: 20, power: 2)", 60, 0.4),
        ("polynomial(peak: 1, power: 1)", 75, 0.25),
        ("exponential(peak: 1, half_life: 10, warmup: 5)", 25, 0.25),
        ("exponential(peak: 1, half_life: 10, floor: 0.1)", 90, 0.1),
        ("multi_step(peak: 1, factor: 0.1)", 80, 1),
        ("multi_step(peak: 1, factor: 0.1)", 81, 0.1),
        ("multi_step(peak: 1, factor: 0.1, at: (0.5, 0.6))", 61, 0.01),
        ("wsd(peak: 1, floor: 0.5, decay: 0.2, root: true)", 85, 0.75),
        ("wsd(peak: 1, warmup: 10, decay: 0.2)", 80, 1),
        ("wsd(peak: 1, warmup: 10, decay: 0.2)", 90, 0.5),
    ],
)
def test_rates(rate: str, step: float, wanted: float) -> None:
    assert rate_at(rate, step) == pytest.approx(wanted, abs=1e-12)


# Settings.


def test_settings_of_the_recipe() -> None:
    spec, _ = load_spec("lora")
    assert spec.adapter is not None
    assert spec.adapter.freeze == ("*",)
    assert [(update.rank, update.dropout) for update in spec.adapter.lora] == [(16, 0.05), (8, 0.0)]
    assert spec.train.model == "llama3_8b"
    assert spec.train.init == "llama3_8b.safetensors"
    assert spec.train.loss.mask == "prompt"
    assert spec.mesh.size == 8
    assert {dim.name: dim.size for dim in spec.program.dims}["batch"] == 64


def test_settings_of_the_pod() -> None:
    spec, _ = load_spec("llama3_8b")
    assert spec.mesh.size == 256
    assert spec.schedule.recompute[0].keep == ("attn.attend", "mlp.gate")
    assert spec.schedule.shards[1].selector == "*"
    assert spec.train.precision == Precision("f32", "bf16", "f32")
    kept = {p.name for p in spec.program.parameters if not p.decays}
    assert kept == {p.name for p in spec.program.parameters if "norm" in p.name} | {"embedding"}


def test_the_default_schedule_names_what_the_model_has() -> None:
    spec, _ = load_spec("tiny_gpt")
    assert [(shard.dims, shard.axes) for shard in spec.schedule.shards] == [
        (("batch",), ("data",)),
        (("heads", "ffn", "vocab"), ("tensor",)),
    ]


def test_a_tokenizer_binds_the_vocabulary() -> None:
    assert load_spec("tiny_gpt")[0].program.sizes.size("vocab") == 256
    spec, _ = load_spec("tiny_gpt", {"data.tokenizer": "bpe(1024)"})
    assert (spec.program.sizes.size("vocab"), spec.data.tokenizer) == (1024, "bpe:1024")
    assert spec.data.vocab == 1024


def test_options_override_fields() -> None:
    given = {
        "train.steps": "7",
        "train.rate": "constant(peak: 1e-2)",
        "train.precision": "f64",
        "data.batch": "4",
        "data.source": "a b.txt",
        "dims.layers": "3",
        "schedule.microbatches": "2",
    }
    spec, _ = load_spec("tiny_llama", given)
    assert spec.train.steps == 7
    assert spec.train.precision == Precision("f64", "f64", "f64")
    assert (spec.data.batch, spec.data.source) == (4, "a b.txt")
    assert spec.program.sizes.size("layers") == 3
    assert spec.schedule.microbatches == 2
    assert spec.sources[-1][0] == "--set"


def test_runs_are_chosen_by_name() -> None:
    text = f"{SHAPE} }}\n{HEAD}{BODY}\n}}\n" + REST.replace("OPTIMIZER", "sgd()").replace(
        "RATE", "constant(peak: 1)"
    )
    more = text + text[text.index("train run") :].replace("run", "other").replace("10", "20")
    spec, found, _ = load("a.fllm", {"train": "other"}, more)
    assert spec is not None, found
    assert (spec.train.name, spec.train.steps) == ("other", 20)
    assert load("a.fllm", {}, more)[0] is None


SCHEDULED = """
fllm 1

import "models/tiny_llama.fllm" (tiny_llama)

adapter part on tiny_llama {
  freeze *
}

data text { source: "builtin:pydocs" batch: 8 seq: 32 }

train run: part {
  data: text
  loss: cross_entropy()
  optimizer: sgd()
  rate: constant(peak: 1)
  steps: 3
}

mesh m { pipe: 2 data: 2 tensor: 2 }

schedule s for run on m {
  shard batch over data
  shard (heads, ffn) over tensor
  shard seq over tensor elsewhere
  zero 3 over data
  zero 1 over (data) in head
  offload body.*.mlp
  pipeline: PIPELINE
  context: ring
  budget_gib: 12.5
  loss_chunks: 4
  backward_chunks: 2
}
"""


def test_settings_of_a_schedule() -> None:
    spec, found, _ = load("a.fllm", text=SCHEDULED.replace("PIPELINE", "1f1b"))
    assert spec is not None, found
    schedule, adapter = spec.schedule, spec.adapter
    assert [shard.elsewhere for shard in schedule.shards] == [False, False, True]
    zero = [(each.stage, each.axes, each.selector) for each in schedule.zero]
    assert zero == [(3, ("data",), "*"), (1, ("data",), "head")]
    assert [each.selector for each in schedule.offload] == ["body.*.mlp"]
    assert schedule.pipeline is not None
    assert (schedule.pipeline.kind, schedule.pipeline.chunks) == ("1f1b", 1)
    assert (schedule.context, schedule.budget_gib) == ("ring", 12.5)
    assert (schedule.loss_chunks, schedule.backward_chunks) == (4, 2)
    assert adapter is not None and adapter.freeze == ("*",)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("auto(memory: 1.5)", ("auto", 1, 1.5, False)),
        ("auto(exact: true)", ("auto", 1, 0.0, True)),
        ("interleaved(chunks: 4)", ("interleaved", 4, 0.0, False)),
        ("zb_v", ("zb_v", 2, 0.0, False)),
    ],
)
def test_pipeline_schedules_by_name(text: str, wanted: tuple[str, int, float, bool]) -> None:
    spec, found, _ = load("a.fllm", text=SCHEDULED.replace("PIPELINE", text))
    assert spec is not None, found
    pipeline = spec.schedule.pipeline
    assert pipeline is not None
    read = (pipeline.kind, pipeline.chunks, pipeline.memory, pipeline.exact)
    assert read == wanted


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("zero 3 over data", "zero 4 over data", "E0253"),
        ("zero 3 over data", "zero 3 over rows", "E0247"),
        ("context: ring", "context: rings", "E0218"),
        ("pipeline: PIPELINE", "pipeline: 2f2b", "E0108"),
        ("pipeline: PIPELINE", "pipeline: zigzag", "E0218"),
        ("pipeline: PIPELINE", "pipeline: auto(exact: 1)", "E0218"),
        ("offload body.*.mlp", "offload body.*.mpl", "E0245"),
    ],
)
def test_mistakes_in_a_schedule(before: str, after: str, code: str) -> None:
    text = SCHEDULED.replace(before, after).replace("PIPELINE", "1f1b")
    _, found, _ = load("a.fllm", text=text)
    assert [each.code for each in found] == [code]


def test_a_library_needs_no_run() -> None:
    spec, found, _ = load("fllmc/specs/library/transformer.fllm", needs_run=False)
    assert (spec, found) == (None, ())


SHARED = """
require HEADS

train counted: small {
  data: text
  loss: cross_entropy()
  optimizer: sgd()
  rate: linear(peak: 1e-3, floor: 0, warmup: 2k tokens)
  steps: 4M tokens
  evaluate_every: 1M tokens
  checkpoint_every: 1k
}

schedule bounded for counted {
  shard batch over data
  budget: 40GiB
  host: 512MiB
}
"""


def counted(fact: str = "embed % 8 == 0", **changed: str) -> tuple[Spec | None, list[str]]:
    """The small model trained by tokens, 64 a step."""
    text = f"{SHAPE} }}\n{SMALL}{SHARED}".replace("HEADS", fact)
    for old, new in changed.items():
        text = text.replace({"steps": "4M tokens", "budget": "40GiB"}[old], new)
    spec, found, _ = load("a.fllm", text=text)
    return spec, [each.code for each in found]


SMALL = """
model small(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
  param head: embed -> vocab

  require embed > seq / 8
  return head(embedding(tokens))
}

data text {
  source: "builtin:pydocs"
  batch: 4
  seq: 16
}
"""


def test_counts_of_tokens_are_steps_and_sizes_are_bytes() -> None:
    spec, found = counted()
    assert spec is not None and not found
    assert spec.train.steps == 4_000_000 // 64
    assert spec.train.evaluate_every == 1_000_000 // 64
    assert spec.train.checkpoint_every == 1000
    assert spec.schedule.budget_gib == 40 and spec.schedule.host_gib == 0.5
    (rate,) = evaluate(spec.program, "rate", {"step": 1.0, "steps": 62_500.0}).values()
    assert rate == pytest.approx(1e-3 / (2000 / 64))
    begun, _ = counted(steps="100 tokens")
    assert begun is not None and begun.train.steps == 2  # what is begun is a step


@pytest.mark.parametrize(
    ("fact", "changed", "code"),
    [
        ("embed % 7 == 0", {}, "E0290"),
        ("embed < 2", {}, "E0290"),
        ("nothing == 0", {}, "E0206"),
        ("embed % (seq - seq) == 0", {}, "E0227"),
        ("embed == embed", {"steps": "4GiB"}, "E0218"),
        ("embed == embed", {"budget": "40"}, "E0218"),
        ("embed == embed", {"budget": "4M tokens"}, "E0218"),
    ],
)
def test_facts_and_units_that_do_not_hold(fact: str, changed: dict[str, str], code: str) -> None:
    assert code in counted(fact, **changed)[1]


STAGES = f"""{SHAPE} }}
{SMALL}
train staged: small {{
  data: text
  loss: cross_entropy()
  optimizer: sgd()
  rate: constant(peak: 0.1)
  stage one {{ STAGE }}
}}
"""


@pytest.mark.parametrize(
    ("stage", "code"),
    [
        ("steps: 1 clip: 2", "E0241"),
        ("steps: 1 } stage one { steps: 2", "E0204"),
        ("batch: 2", "E0242"),
        ("steps: 1 freeze: [nothing]", "E0245"),
        ("steps: 1 freeze: 3", "E0218"),
        ("steps: 4 batch: ramp(1, 2) seq: ramp(1, 2, 3)", "E0218"),
        ("steps: 1 batch: ramp()", "E0218"),
        ("steps: 1 data: none", "E0243"),
    ],
)
def test_mistakes_in_stages(stage: str, code: str) -> None:
    spec, found, _ = load("a.fllm", text=STAGES.replace("STAGE", stage))
    assert spec is None and code in {each.code for each in found}
