"""Which positions of a dim each rank holds, in one stretch or dealt in zig-zag."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir.text_words import dim as shown
from fllmc.ir.types import Axis, Dim, Mesh, Sizes

MESH = Mesh((Axis("a", 3), Axis("b", 2), Axis("c", 4)))
SIZE = 2 * 3 * 2 * 2 * 4 * 2
SIZES = Sizes({"seq": SIZE}, MESH)


def held(dim: Dim, rank: int) -> list[int]:
    stretches = SIZES.stretches(dim, MESH.coordinates(rank))
    return [position for stretch in stretches for position in stretch]


@given(
    st.permutations(["a", "b", "c"]),
    st.integers(0, 3),
    st.lists(st.sampled_from(["", "~"]), min_size=3, max_size=3),
)
def test_each_position_is_held_once_by_ranks_along_the_axes(
    order: list[str], count: int, marks: list[str]
) -> None:
    axes = tuple(axis + mark for axis, mark in zip(order[:count], marks, strict=False))
    dim = Dim("seq", axes)
    for ranks in MESH.groups(axes):
        assert sorted(p for rank in ranks for p in held(dim, rank)) == list(range(SIZE))
    for rank in range(MESH.size):
        assert len(held(dim, rank)) == SIZE // MESH.extent(axes)


def test_zigzag_over_two_axes_is_that_of_their_product() -> None:
    single = Sizes({"seq": SIZE}, Mesh((Axis("ab", 6),)))
    for rank in range(MESH.size):
        place = MESH.position(MESH.coordinates(rank), ("a", "b"))
        expected = single.stretches(Dim("seq", ("ab~",)), {"ab": place})
        assert SIZES.stretches(Dim("seq", ("a~", "b~")), MESH.coordinates(rank)) == expected


def test_rank_r_of_c_holds_stretches_r_and_2c_minus_1_minus_r() -> None:
    sizes = Sizes({"seq": 8}, Mesh((Axis("c", 4),)))
    found = [sizes.stretches(Dim("seq", ("c~",)), {"c": rank}) for rank in range(4)]
    apart = [(range(r, r + 1), range(7 - r, 8 - r)) for r in range(3)]
    assert found == [*apart, (range(3, 5),)]


def test_the_mark_is_a_part_of_the_type() -> None:
    assert shown(Dim("seq", ("context~", "tensor"))) == "seq@(context~, tensor)"
    assert str(Dim("seq", ("context~",))) == "seq@context~"
