"""compress: kept values in 8 bits, the same on every mesh, off by what rounding explains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fllmc.driver import compile_spec
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.ops import Dequantize, Quantize, Scan
from fllmc.ir.plan import Plan
from fllmc.ir.program import Op, Program
from fllmc.ir.settings import Compress as Directive
from fllmc.ir.settings import Shard
from fllmc.ir.types import DTYPE_BYTES, Axis, Mesh
from fllmc.passes.base import Context
from fllmc.passes.compress import LARGEST, Compress, block_count
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from tests.codegen.overlaps import faults
from tests.oracle.moe_specs import moe_spec
from tests.passes.memory_specs import DEVICES, alike, compiled, evaluated, executed, text
from tests.specs.evaluated import arguments, evaluated_step
from tests.specs.random_specs import Drawn
from tests.specs.stages import load_drawn

WHOLE = "  compress body.*"
LAYERS = 3

LINEAR = """fllm 1

dims {
  batch
  seq
  vocab
  embed = 16
  ffn = 24
  layers = 3
}

block linear(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param up: embed -> ffn
  param down: ffn -> embed

  return x + down(up(x))
}

model small(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
  param head: embed -> vocab
  stack body: linear over layers

  return head(body(embedding(tokens)))
}

data text {
  source: "builtin:pydocs"
  batch: 4
  seq: 12
}

train run: small {
  data: text
  loss: cross_entropy()
  optimizer: sgd()
  rate: constant(peak: 1.0)
  steps: 5
  precision: f64
}

schedule placed for run {
  shard batch over data
LINE
}
"""


def kept(program: Program, entry: str = "train") -> dict[str, int]:
    """Bytes that a layer keeps, by the types of values."""
    (scan,) = (
        op.attrs
        for op in program.function(entry).ops
        if isinstance(op.attrs, Scan) and not op.attrs.reverse
    )
    body = program.function(scan.function)
    kinds = [body.types[value] for value in body.results[scan.carries :]]
    found: dict[str, int] = {}
    for kind in kinds:
        found[str(kind)] = found.get(str(kind), 0) + program.sizes.local_bytes(kind)
    return found


class Exact:
    """The linear model's step in plain PyTorch, with what the bound is made of."""

    def __init__(self, given: dict[str, np.ndarray]) -> None:
        def leaf(name: str) -> Tensor:
            return torch.from_numpy(given[name]).requires_grad_()

        self.leaves = {n: leaf(n) for n in ("embedding", "head", "body.up", "body.down")}
        tokens, targets = (torch.from_numpy(given[n]) for n in ("tokens", "targets"))
        weights = torch.from_numpy(given["weights"])
        self.inputs: list[tuple[Tensor, Tensor]] = []
        self.outputs: list[tuple[Tensor, Tensor]] = []
        x = self.leaves["embedding"][tokens]
        for layer in range(LAYERS):
            wide = x @ self.leaves["body.up"][layer]
            back = wide @ self.leaves["body.down"][layer]
            for value in (wide, back):
                value.retain_grad()
            self.inputs.append((x, wide))
            self.outputs.append((wide, back))
            x = x + back
        logits = x @ self.leaves["head"]
        nll = logits.logsumexp(-1) - logits.gather(-1, targets[..., None])[..., 0]
        (nll * weights).sum().div(weights.sum()).backward()

    def bound(self, name: str, layer: int) -> np.ndarray:
        """The most that an element of a weight gradient is off by: sum of |dy| half a step."""
        at = 0 if name == "body.up" else 1
        x, out = self.inputs[layer][at].detach(), self.outputs[layer][at]
        assert out.grad is not None
        count = block_count(x.shape[-1])
        blocks = x.abs().reshape(*x.shape[:-1], count, -1)
        half = (blocks.amax(-1, keepdim=True) / 254).expand(blocks.shape).reshape(x.shape)
        return torch.einsum("bsi,bsj->ij", half, out.grad.abs()).numpy()


def step_of(line: str, mesh: str = "1") -> dict[str, np.ndarray]:
    return evaluated_step(LINEAR.replace("LINE", line), mesh)


def given_values() -> dict[str, np.ndarray]:
    """What `evaluated_step` gives the linear model."""
    spec, devices = load_drawn(Drawn(LINEAR.replace("LINE", ""), ""))
    cx = Context(devices, lambda found: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    return {name: np.asarray(value) for name, value in arguments(program).items()}


def test_gradients_are_off_by_what_rounding_explains_and_no_more() -> None:
    """In a linear model what is kept serves weight gradients alone, so the error has a bound."""
    exact, rounded, given = step_of(""), step_of(WHOLE), given_values()
    names = {n.rpartition(".")[2]: n for n in given}
    values = {
        "tokens": given[names["tokens"]],
        "targets": given[names["targets"]],
        "weights": given[names["weights"]],
        **{n: given[n] for n in ("embedding", "head", "body.up", "body.down")},
    }
    reference = Exact(values)
    assert exact["loss"] == rounded["loss"]
    for name in ("embedding", "head"):
        np.testing.assert_array_equal(exact[name], rounded[name])
    for name in ("body.up", "body.down"):
        gradient = given[name] - exact[name]  # the rate is 1
        wanted = reference.leaves[name].grad
        assert wanted is not None
        np.testing.assert_allclose(gradient, wanted.numpy(), rtol=0, atol=1e-12)
        for layer in range(LAYERS):
            error = np.abs(rounded[name][layer] - exact[name][layer])
            bound = reference.bound(name, layer)
            assert np.all(error <= bound + 1e-14)
            assert error.max() > bound.max() / 100


@pytest.mark.parametrize("model", ["tiny_gpt", "tiny_llama"])
def test_the_forward_pass_is_exact(model: str) -> None:
    exact, _ = compiled(model, "")
    program, _ = compiled(model, WHOLE)
    assert evaluated(exact, "train")["loss"] == evaluated(program, "train")["loss"]
    assert str(exact.function("evaluate")) == str(program.function("evaluate"))


@pytest.mark.parametrize("mesh", DEVICES[1:])
@pytest.mark.parametrize("lines", [WHOLE, "  compress body.*.mlp\n  microbatches: 2"])
def test_the_same_numbers_on_a_mesh(mesh: str, lines: str) -> None:
    whole, _ = compiled("tiny_llama", lines)
    _, plan = compiled("tiny_llama", lines, mesh)
    alike(evaluated(plan.program, "train"), evaluated(whole, "train"))


@pytest.mark.parametrize("model", ["tiny_gpt", "tiny_llama"])
def test_bytes_are_those_of_codes_and_scales(model: str) -> None:
    (_, exact), (_, plan) = compiled(model, ""), compiled(model, WHOLE)
    sizes = plan.program.sizes
    before, after = kept(exact.program), kept(plan.program)
    assert faults(plan) == []
    wanted = 0
    for kind, held in before.items():
        own = kind.partition("[")[2].rstrip("]").split(", ")[-1]
        if own in ("seq", "heads"):  # statistics
            wanted += held
            continue
        elements = held // DTYPE_BYTES["f64"]
        wanted += elements + 4 * elements // sizes.size(own) * block_count(sizes.size(own))
    assert sum(after.values()) == wanted < sum(before.values()) // 2
    spared = LAYERS * (sum(before.values()) - sum(after.values()))
    assert 0 < exact.arena_bytes - plan.arena_bytes <= spared


def test_the_generated_code_does_what_the_evaluator_says() -> None:
    """But for scales, which it has in f32: codes are the same, and so is the rounding."""
    program, plan = compiled("tiny_llama", WHOLE)
    exact, _ = compiled("tiny_llama", "")
    _, found = executed(plan, "train")
    wanted, without = evaluated(program, "train"), evaluated(exact, "train")
    for name, value in wanted.items():
        off = np.linalg.norm(found[name] - value)
        rounding = np.linalg.norm(without[name] - value)
        assert off <= 1e-4 * rounding + 1e-7 * np.linalg.norm(value), name


def test_statistics_and_choices_are_kept_exactly() -> None:
    spec, devices = load_drawn(Drawn(text("tiny_llama", WHOLE), ""))
    cx = Context(devices, lambda found: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    exact = [kind for kind in kept(program) if kind.startswith("f64")]
    assert sorted(exact) == ["f64[batch, seq, heads]", "f64[batch, seq]"]


@pytest.mark.parametrize("mesh", ["", "data=2,tensor=2"])
def test_what_is_compressed_can_wait_in_host_memory(mesh: str) -> None:
    _, here = compiled("tiny_llama", WHOLE, mesh)
    _, away = compiled("tiny_llama", WHOLE + "\n  offload body.*", mesh)
    alike(evaluated(away.program, "train"), evaluated(here.program, "train"), 0.0)
    assert faults(away) == []
    held = sum(kept(away.program).values())
    apart = 64 * 20  # values that wait begin at multiples of 64 bytes
    assert LAYERS * held <= away.host_bytes < LAYERS * held + apart
    assert not any(op.kind == "all_gather" and "blocks" in str(op.attrs) for op in ops_of(away))


def ops_of(plan: Plan) -> list[Op]:
    return [op for function in plan.program.functions for op in function.ops]


def test_a_budget_counts_codes() -> None:
    lines = "  budget_gib: 1.0"
    _, exact = compiled("tiny_llama", lines)
    _, plan = compiled("tiny_llama", lines + "\n" + WHOLE)
    assert plan.arena_bytes < exact.arena_bytes


def ran(program: Program, selector: str, mesh: Mesh, *shards: Shard) -> list[Diagnostic]:
    said: list[Diagnostic] = []
    step = Compress((Directive(selector),), shards)
    step.run(program, Context(mesh, said.append))
    return said


def test_what_cannot_be_compressed_is_told() -> None:
    program, _ = compiled("tiny_llama", "")
    assert [d.code for d in ran(program, "body.*.attn.wo", Mesh())] == ["W0374"]
    assert ran(program, "body.*.mlp", Mesh()) == []
    mesh = Mesh((Axis("tensor", 4),))
    cut = ran(program, "body.*.mlp", mesh, Shard(("ffn",), ("tensor",)))
    assert {d.code for d in cut} == {"W0375"}
    assert "2 blocks along `ffn` are not shared by 4 ranks" in cut[0].message()


def test_blocks_depend_on_the_size_alone_and_many_ranks_can_share_them() -> None:
    for size in range(1, 600):
        count = block_count(size)
        assert size % count == 0 and size // count <= LARGEST
    wide = {4096: 256, 14336: 224, 11008: 172, 13824: 216, 28672: 256, 8192: 256}
    for size, block in wide.items():
        assert size // block_count(size) == block
        assert block_count(size) % 16 == 0


def test_each_value_is_restored_once_just_before_it_is_used() -> None:
    program, _ = compiled("tiny_llama", WHOLE)
    there, back = (program.function(f"layer.{way}") for way in ("forward", "backward"))
    codes = sum(isinstance(op.attrs, Quantize) for op in there.ops)
    assert codes == sum(isinstance(op.attrs, Dequantize) for op in back.ops) > 0
    for at, op in enumerate(back.ops):
        if isinstance(op.attrs, Dequantize):
            later = back.ops[at + 1 :]
            used = next(n for n, each in enumerate(later) if set(op.results) & set(each.operands))
            assert all(isinstance(each.attrs, Dequantize) for each in later[:used])


def planned(folder: Path, line: str) -> Plan:
    spec = folder / "small.fllm"
    spec.write_text(LINEAR.replace("LINE", line))
    return compile_spec(str(spec)).plan


def test_the_plan_says_that_numbers_change(tmp_path: Path) -> None:
    assert not any("compress" in d.subject for d in planned(tmp_path, "").decisions)
    (said,) = [d for d in planned(tmp_path, WHOLE).decisions if d.subject.startswith("compress")]
    assert said.subject == "compress body.*" and "not exact" in said.choice
    held = [d.choice for d in planned(tmp_path, WHOLE).decisions if "in 8 bits" in d.choice]
    assert any("to a scale: `i8[batch, seq, ffn]`" in choice for choice in held)


def test_experts_are_compressed_by_row() -> None:
    spec, devices = load_drawn(Drawn(moe_spec("moe", WHOLE.strip()), ""))
    cx = Context(devices, lambda found: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    coded = {kind for kind in kept(program) if kind.startswith("i8")}
    assert any("routed" in kind for kind in coded)
    assert all(kind.endswith(("embed]", "ffn]")) for kind in coded)
