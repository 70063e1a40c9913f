"""A few tensors, saved and compared: what the tests of checkpoints share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.runtime.checkpoint.load import Checkpoint
from fllmc.runtime.checkpoint.manifest import Position
from fllmc.runtime.checkpoint.save import Shard, save

TENSORS = {
    "embedding": torch.arange(48, dtype=torch.float32).reshape(8, 6),
    "body.0.wq": torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "body.0.wq#m": torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(2)).double(),
    "odd": torch.arange(7),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
}


def position(step: int) -> Position:
    """The position of a run after `step` steps."""
    return Position(step, step * 4, "planhash", 17, {"data": "abc"})


def owned(name: str, value: Tensor) -> Shard:
    """A tensor that one rank has wholly."""
    return Shard(name, value, tuple(value.shape), (0,) * value.dim())


def save_alone(folder: Path, step: int = 100, keep: int = 0) -> Path:
    """All of TENSORS, saved by one rank."""
    shards = [owned(name, value) for name, value in TENSORS.items()]
    return save(folder, position(step), shards, keep=keep)


def faults(make: Callable[[], object]) -> tuple[Diagnostic, ...]:
    """The diagnostics that `make` raises, all their words filled in."""
    with pytest.raises(DiagnosticError) as caught:
        make()
    for d in caught.value.diagnostics:
        assert "{" not in " ".join([d.message(), d.primary(), *d.notes(), *d.helps()])
    return caught.value.diagnostics


def same(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    """The checkpoint holds these tensors and no others, bit for bit."""
    assert checkpoint.names() == sorted(tensors)
    for name, value in tensors.items():
        found = checkpoint.read(name)
        assert found.dtype == value.dtype and torch.equal(found, value), name
