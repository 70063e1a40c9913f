"""What is stored in few bits, in words, and what that does to numbers."""

from __future__ import annotations

from collections.abc import Iterator

from fllmc.ir.codebooks import most_moved
from fllmc.ir.coded import SCALES, codes_of, owner_name, value_elements
from fllmc.ir.plan import Decision
from fllmc.ir.program import Program
from fllmc.ir.quantities import bytes_text
from fllmc.ir.types import Sizes


def quantized(program: Program) -> Iterator[Decision]:
    """One decision for each parameter in few bits."""
    sizes = Sizes(program.sizes.dims)
    kinds = {parameter.name: parameter.type for parameter in program.parameters}
    for codes in codes_of(program.parameters):
        name = owner_name(codes)
        held = (codes.type, kinds[f"{name}.{SCALES}"])
        less = 2 * value_elements(codes, sizes) - sum(sizes.local_bytes(k.unplaced()) for k in held)
        scales = f"a scale for each {codes.block} along {codes.along}"
        yield Decision(
            name,
            f"stored in {codes.bits} bits with {scales}",
            "`quantize` selects it; this changes numbers: an element moves by up to "
            f"{most_moved(codes.bits):.1%} of the largest of its block",
            f"16 bits for each element: {bytes_text(less)} more in all",
        )
