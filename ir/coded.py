"""Parameters stored as codes and scales: `wq` as `wq.codes` and `wq.scales`.

Both have the parameter's dims but for the one `along` which blocks lie: of `embed`, codes of four
bits have `embed.codes`, half as long, in its place, and scales `embed.blocks64`, with a position
for each block of 64.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Final

from msgspec import structs

from fllmc.ir.codebooks import CODE_DTYPES
from fllmc.ir.program import Parameter
from fllmc.ir.types import Dim, Sizes, Type

CODES: Final = "codes"
SCALES: Final = "scales"
"""What the parts hold; their names end so."""

_CODES, _BLOCKS = ".codes", ".blocks"


def codes_dim(along: str, bits: int) -> str:
    """The dim of codes in place of dim `along`."""
    return along if bits == 8 else along + _CODES


def blocks_dim(along: str, block: int) -> str:
    """The dim of scales in place of dim `along`."""
    return f"{along}{_BLOCKS}{block}"


def cuts_of(dim: str, dims: Iterable[str]) -> tuple[str, ...]:
    """The dims, of these, that stand in place of a dim in codes and scales."""
    return tuple(name for name in dims if uncut(name) == dim and name != dim)


def uncut(dim: str) -> str:
    """The dim in whose place a dim of codes or scales stands; any other dim itself."""
    if dim.endswith(_CODES):
        return dim.removesuffix(_CODES)
    before, mark, block = dim.rpartition(_BLOCKS)
    return before if mark and block.isdigit() else dim


def coded(parameter: Parameter, along: str, block: int, bits: int) -> tuple[Parameter, Parameter]:
    """The codes and the scales of a parameter, which are not trained."""

    def part(holds: str, dim: str, dtype: str) -> Parameter:
        dims = (Dim(dim if d.name == along else d.name) for d in parameter.type.dims)
        return structs.replace(
            parameter,
            name=f"{parameter.name}.{holds}",
            type=Type(dtype, tuple(dims)),
            trainable=False,
            holds=holds,
            bits=bits,
            block=block,
            along=along,
        )

    codes = part(CODES, codes_dim(along, bits), CODE_DTYPES[bits])
    return codes, part(SCALES, blocks_dim(along, block), "f32")


def codes_of(parameters: Iterable[Parameter]) -> tuple[Parameter, ...]:
    """Those that hold codes."""
    return tuple(parameter for parameter in parameters if parameter.holds == CODES)


def owner_name(parameter: Parameter) -> str:
    """The name of the parameter that is stored, in part, as this one."""
    return parameter.name.removesuffix(f".{parameter.holds}") if parameter.holds else parameter.name


def value_elements(parameter: Parameter, sizes: Sizes) -> int:
    """The number of elements of a whole parameter; those of scales are counted with their codes."""
    if parameter.holds == SCALES:
        return 0
    return prod(sizes.shape(parameter.type)) * (8 // parameter.bits if parameter.holds else 1)


def value_names(parameter: Parameter) -> tuple[str, ...]:
    """The dims of the parameter that is stored, in part, as this one."""
    names = parameter.type.names
    return tuple(uncut(name) for name in names) if parameter.holds else names
