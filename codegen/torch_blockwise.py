"""Lowering of the blockwise ops to torch calls: all tensors as [blocks, block, inner]."""

from __future__ import annotations

from fllmc.codegen.function_text import FunctionText
from fllmc.codegen.views import product, shape_text
from fllmc.ir.ops import Blockwise, Quantize
from fllmc.ir.program import Op


def blockwise(text: FunctionText, op: Op, at: int) -> list[str]:
    """A value to codes and scales, or back."""
    del at
    attrs = op.attrs
    assert isinstance(attrs, Blockwise)
    forward = isinstance(attrs, Quantize)
    value, codes, scales = (*op.operands, *op.results) if forward else (*op.results, *op.operands)
    place = text.function.types[value].names.index(attrs.dim)
    shape = text.sizes.local_shape(text.function.types[scales])
    blocks, inner = product(shape[: place + 1]), product(shape[place + 1 :])
    block = text.sizes.size(attrs.dim) // text.sizes.size(attrs.blocks)

    def view(number: int, *extents: int) -> str:
        return text.view(f"{text.tensor(number)}.view({shape_text(extents)})")

    whole, packed = view(value, blocks, block, inner), block * attrs.bits // 8
    parts = view(codes, blocks, packed, inner), view(scales, blocks, inner)
    if forward:
        return [f"kernels.quantize({whole}, {attrs.bits}, out=({', '.join(parts)}))"]
    return [f"kernels.dequantize({', '.join(parts)}, {attrs.bits}, out={whole})"]
