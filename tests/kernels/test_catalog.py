"""The catalogue lists every kernel, with the parameters that it has, and costs that add up."""

import inspect
import subprocess
import sys

import pytest

from fllmc.kernels import torch_ops
from fllmc.kernels.catalog import BY_NAME, KERNELS, Cost, Kernel

SIZES = {
    "batch": 2, "heads": 4, "groups": 2, "queries": 8, "keys": 8, "dim": 16, "width": 2, "seq": 8,
    "elements": 64, "indices": 32, "columns": 16,
    "chosen": 2, "counts": 4, "rows": 8, "experts": 4, "inner": 8,
    "block": 16, "bits": 4,
}  # fmt: skip


def test_catalogue_and_namespace_are_the_same_kernels() -> None:
    assert [k.name for k in KERNELS] == list(BY_NAME)
    assert sorted(BY_NAME) == sorted(torch_ops.__all__)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_entry_is_the_function(kernel: Kernel) -> None:
    function = getattr(torch_ops, kernel.name)
    assert list(inspect.signature(function).parameters) == [name for name, _ in kernel.takes]
    assert function.__module__ == f"fllmc.kernels.{kernel.family}"
    assert not kernel.gives or kernel.gives in dict(kernel.takes)
    needed = inspect.signature(kernel.cost).parameters
    once = {name: SIZES[name] for name in needed if name in SIZES}
    cost = kernel.cost(**once)
    assert cost.bytes > 0 and cost.flops >= 0


def test_costs_of_a_known_case() -> None:
    sizes = {"batch": 1, "heads": 2, "groups": 1, "queries": 4, "keys": 4, "dim": 8, "width": 2}
    # q k^T and p v: 2 * 2 heads * 4 * 4 * 8 multiply-adds; q, o: 64 elements, k, v: 32; lse: 8.
    assert BY_NAME["attend"].cost(**sizes) == Cost(1024, 2 * (2 * 64 + 2 * 32) + 4 * 8)
    assert BY_NAME["attend"].cost(**sizes, causal=True).flops == 512
    assert BY_NAME["attend_grad"].cost(**sizes).flops == 2560


def test_catalogue_is_read_without_torch() -> None:
    code = "import sys, fllmc.kernels.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
