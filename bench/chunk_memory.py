"""Peak bytes of a rank against the number of chunks of the loss and of the backward pass.

    python bench/chunk_memory.py [--model llama3_8b] [--mesh 8x4] [--seq 131072]

Compiles the model with full recomputation for each pair and prints what a rank holds; nothing runs.
"""

from __future__ import annotations

import argparse

from msgspec import structs

from fllmc.codegen.make_plan import derived_all
from fllmc.driver import choose_mesh
from fllmc.frontend import load_spec
from fllmc.ir.quantities import bytes_text
from fllmc.ir.settings import Recompute, Spec
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline


def arena(spec: Spec, mesh: Mesh, loss: int, backward: int) -> int:
    """Bytes of one rank."""
    schedule = structs.replace(
        spec.schedule,
        recompute=(Recompute("body.*"),),
        loss_chunks=loss,
        backward_chunks=backward,
    )
    spec = structs.replace(spec, schedule=schedule)
    cx = Context(mesh, lambda found: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    return derived_all([program])[0].arena_bytes


def main() -> None:
    """Print the table: rows are chunks of the loss, columns of the backward pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="llama3_8b")
    parser.add_argument("--mesh", default="8x4")
    parser.add_argument("--chunks", default="1,2,4,8,16")
    parser.add_argument("--seq", default="131072")
    given = parser.parse_args()
    spec, _ = load_spec(given.model, {"data.seq": given.seq})
    mesh, read = choose_mesh(given.mesh, spec)
    counts = [int(text) for text in given.chunks.split(",")]
    print(f"{given.model}, seq {given.seq}, {read}; loss_chunks down, backward_chunks across")
    print(" " * 6 + "".join(f"{count:>12}" for count in counts))
    for loss in counts:
        row = (bytes_text(arena(spec, mesh, loss, backward)) for backward in counts)
        print(f"{loss:>6}" + "".join(f"{size:>12}" for size in row))


if __name__ == "__main__":
    main()
