"""Seconds and memory to check the largest spec that ships and a generated one of 5,000 lines.

    python bench/large_spec.py

Each is checked in a process of its own, as `fllmc check` does it; the best of three counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

LINES = 5_000
MEASURE = """
import resource, sys, time
begin = time.perf_counter()
from fllmc.frontend import load
_, found, _ = load(sys.argv[1], needs_run=False)
assert not found, found[0].message()
seconds = time.perf_counter() - begin
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def large_spec(blocks: int) -> str:
    """A spec with that many different blocks, 12 lines each, one after the other in a model."""
    head = [
        "fllm 1\n",
        "dims {\n  batch\n  seq\n  vocab\n  embed = 64\n  ffn = 128\n}\n",
    ]
    for number in range(blocks):
        head.append(
            f"block b{number}(x: [batch, seq, embed]) -> [batch, seq, embed] {{\n"
            "  param scale: [embed] = ones()\n"
            "  param gate: embed -> ffn\n"
            "  param up: embed -> ffn\n"
            "  param down: ffn -> embed\n\n"
            "  h = rms_norm(x, over: embed) * scale\n"
            f"  g = silu(gate(h)) * {number + 1}\n"
            "  u = g * up(h) + tanh(g) / (1 + g^2)\n"
            "  return x + down(u)\n"
            "}\n"
        )
    subs = "".join(f"  sub s{number}: b{number}\n" for number in range(blocks))
    steps = "".join(f"  x{n + 1} = s{n}(x{n})\n" for n in range(blocks))
    head.append(
        "model all(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {\n"
        "  param embedding: vocab -> embed\n"
        f"{subs}\n  x0 = embedding(tokens)\n{steps}"
        f"  return embedding.T(x{blocks})\n}}\n"
    )
    head.append(
        'data text {\n  source: "builtin:pydocs"\n  tokenizer: bytes\n  batch: 8\n  seq: 16\n}\n'
    )
    head.append(
        "train run: all {\n  data: text\n  loss: cross_entropy()\n  optimizer: adamw()\n"
        "  rate: constant(peak: 1e-3)\n  steps: 10\n}\n"
    )
    return "\n".join(head)


def spec_of_lines(lines: int) -> str:
    """The smallest such spec of at least that many lines."""
    blocks = max(1, (lines - 40) // 14)
    while large_spec(blocks).count("\n") < lines:
        blocks += 1
    return large_spec(blocks)


def measured(path: str) -> tuple[float, float]:
    """The best seconds of three, and the most MiB."""
    told = [
        subprocess.run(
            [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
        )
        for _ in range(3)
    ]
    pairs = [tuple(map(float, each.stdout.split())) for each in told]
    return min(seconds for seconds, _ in pairs), max(size for _, size in pairs)


def main() -> None:
    """Print the table."""
    specs = sorted(Path(__file__).parents[1].glob("specs/models/*.fllm"))
    largest = max(specs, key=lambda path: path.stat().st_size)
    table = Table("spec", "lines", "seconds", "MiB")
    with tempfile.TemporaryDirectory() as folder:
        generated = Path(folder) / "generated.fllm"
        generated.write_text(spec_of_lines(LINES), encoding="utf-8")
        for path in (largest, generated):
            seconds, size = measured(str(path))
            lines = path.read_text(encoding="utf-8").count("\n")
            table.add_row(path.name, f"{lines:,}", f"{seconds:.2f}", f"{size:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
