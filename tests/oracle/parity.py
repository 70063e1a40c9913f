"""A spec's model beside one of transformers, in float64: logits, loss and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fllmc.frontend import load_spec
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.types import Mesh
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.base import Context
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.inline import Inline

Layered = Mapping[str, Tensor]
"""Their tensors by the paths of our layers' parameters, each in our shape, linked to theirs."""


@contextmanager
def wide() -> Iterator[None]:
    """Single precision is double precision, also where a model of transformers insists on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def small(path: str, sizes: Mapping[str, int]) -> Program:
    """The model of a spec that ships, at these sizes and in float64."""
    overrides = {f"dims.{name}": str(size) for name, size in sizes.items() if name not in BOUND}
    overrides |= {f"data.{name}": str(size) for name, size in sizes.items() if name in BOUND}
    spec, _ = load_spec(path, overrides | {"train.precision": "f64"})
    return spec.program


BOUND = ("batch", "seq")


def gradient_program(program: Program) -> Program:
    """The program with the gradients of its loss."""
    cx = Context(Mesh(), lambda found: None)
    for each in (Inline(), ApplyLoss(), Differentiate()):
        program = each.run(program, cx)
    return program


def together(program: Program, layered: Layered) -> dict[str, Tensor]:
    """The program's parameters, those of a stack as one tensor."""
    found: dict[str, Tensor] = {}
    for each in program.parameters:
        count = program.sizes.size(each.stack) if each.stack else 0
        parts = [layered[each.layer_name(layer)] for layer in range(count)]
        found[each.name] = torch.stack(parts) if count else layered[each.name]
    return found


def judge(
    program: Program,
    theirs: torch.nn.Module,
    names: Callable[[], Layered],
    tolerance: float = 1e-9,
    unused: Sequence[str] = (),
) -> None:
    """Equal logits and losses, and equal gradients of all of their parameters through our names."""
    given: Any = theirs.eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    kind = program.function("model").signature.inputs[-1]
    tokens = torch.randint(program.sizes.size(kind.index), program.sizes.shape(kind))
    weights = torch.rand(tokens.shape, dtype=torch.float64)
    targets = torch.randint(program.sizes.size(kind.index), tokens.shape)
    ours = together(program, names())
    with wide():
        logits = given(input_ids=tokens).logits
    lost = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    loss = (lost * weights.flatten()).sum() / weights.sum()
    arguments = {name: value.detach().numpy() for name, value in ours.items()}
    plain = {**arguments, "tokens": tokens.numpy()}
    near(evaluate(program, "model", plain)["out"], logits, tolerance, "logits")
    whole = gradient_program(program)
    batch = {"targets": targets.numpy(), "weights": weights.numpy(), "seed": 1.0}
    inputs = {each.name for each in whole.function("gradient").inputs}
    given_batch = {name: value for name, value in batch.items() if name in inputs}
    found = evaluate(whole, "gradient", {**plain, **given_batch})
    count = found.get("count", 1.0)
    near(found["loss"] / count, loss, tolerance, "loss")
    pulled = [torch.from_numpy(np.asarray(found[f"grad.{name}"] / count)) for name in ours]
    leaves = [p for n, p in theirs.named_parameters() if n not in unused]
    back = torch.autograd.grad(list(ours.values()), leaves, pulled, retain_graph=True)
    wanted = torch.autograd.grad(loss, leaves)
    for name, mine, right in zip(dict(theirs.named_parameters()), back, wanted, strict=True):
        near(mine, right, tolerance, name)


def near(found: Any, wanted: Tensor, tolerance: float, what: str) -> None:
    """Equal within a tolerance relative to the largest value."""
    right = wanted.detach().numpy()
    error = np.abs(np.asarray(found) - right).max() / max(np.abs(right).max(), 1e-3)
    assert error < tolerance, f"{what}: {error:.1e}"
