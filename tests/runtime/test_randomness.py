"""Random bits are those published, and depend on their place only."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir import philox
from fllmc.runtime import randomness

# Of the generator's authors: counter, key, result of philox4x32 with ten rounds.
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KEY = philox.stream_key("test", 1)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    n0, n1, n2, n3 = (np.array([c], dtype=np.int64) for c in counter)
    assert tuple(int(w[0]) for w in philox.philox4x32((n0, n1, n2, n3), key)) == expected
    t0, t1, t2, t3 = (torch.tensor([c]) for c in counter)
    assert tuple(int(w) for w in philox.philox4x32((t0, t1, t2, t3), key)) == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.integers(0, 2**63))
def test_torch_has_the_bits_of_numpy(key: int, first: int, stream: int) -> None:
    blocks = np.arange(first, first + 37, dtype=np.int64)
    ours = torch.from_numpy(blocks)
    bits = philox.bits(key, blocks, stream)
    assert np.array_equal(randomness.bits(key, ours, stream).numpy(), bits)


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", DEVICES)
def test_torch_has_the_numbers_of_numpy_whatever_the_layout(device: str) -> None:
    count = 40_000
    blocks = torch.arange(count, device=device)
    uniform = philox.uniform32(KEY, 0, 4 * count)
    assert np.array_equal(randomness.uniform32(KEY, blocks).cpu().numpy().ravel(), uniform)
    double = philox.uniform64(KEY, 0, 2 * count)
    assert np.array_equal(randomness.uniform64(KEY, blocks).cpu().numpy().ravel(), double)
    normal = philox.normal(KEY, 0, 4 * count)
    assert np.array_equal(randomness.normal(KEY, blocks).cpu().numpy().ravel(), normal)
    strided = randomness.normal(KEY, blocks.view(200, 200).T)
    assert np.array_equal(strided.transpose(0, 1).cpu().numpy().ravel(), normal)


@pytest.mark.parametrize("draw", [philox.uniform32, philox.uniform64, philox.normal])
def test_a_stream_may_be_entered_anywhere(draw: Callable[..., Any]) -> None:
    whole = draw(KEY, 0, 40, 3)
    for first, count in itertools.product(range(9), (0, 1, 2, 7, 20)):
        assert np.array_equal(draw(KEY, first, count, 3), whole[first : first + count])
    assert not np.array_equal(draw(KEY, 0, 40, 4), whole)


def test_the_polynomials_are_the_functions() -> None:
    word = np.concatenate([np.arange(8) << 29, philox.bits(KEY, np.arange(20_000)).ravel()])
    word = word.astype(np.int64)
    angle = (word + np.longdouble(0.5)) * np.longdouble(2) ** -32 * 2 * np.arccos(np.longdouble(-1))
    cosine, sine = philox.cos_sin(word, philox.NUMPY)
    assert max(abs(cosine - np.cos(angle)).max(), abs(sine - np.sin(angle)).max()) < 5e-16
    x = (word + 0.5) * 2.0**-32
    exact = -2 * np.log(x.astype(np.longdouble))
    assert abs(philox.minus_two_log(x, philox.NUMPY) / exact - 1).max() < 1e-14


def test_the_square_root_is_right_from_a_wrong_start() -> None:
    class Sloppy(philox.NumpyLibrary):
        def sqrt(self, x: philox.Lanes) -> philox.Lanes:
            return np.nextafter(np.sqrt(x), np.arange(len(x)) % 2 * 100.0)

    x = philox.uniform64(KEY, 0, 100_000) * 44.4 + 1e-10
    assert np.array_equal(philox.square_root(x, Sloppy()), np.sqrt(x))


def test_moments() -> None:
    x = philox.normal(KEY, 0, 400_000)
    moments = [(x**k).mean() for k in range(1, 5)]
    assert np.allclose(moments, [0, 1, 0, 3], atol=0.03)
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.01
    u = philox.uniform64(KEY, 0, 400_000)
    assert 0 <= u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1
    assert np.allclose([u.mean(), u.var()], [1 / 2, 1 / 12], atol=2e-3)


def test_a_permutation_is_one() -> None:
    order = philox.permutation(KEY, 1_001)
    assert np.array_equal(np.sort(order), np.arange(1_001))
    assert not np.array_equal(order, philox.permutation(KEY, 1_001, 1))


def test_keys_tell_their_parts_apart() -> None:
    lists = [("a", "b"), ("ab",), ("a", "b", ""), ("a", 1), ("a", "1"), (1, "a")]
    assert len({philox.stream_key(*parts) for parts in lists}) == len(lists)
    assert 0 <= philox.stream_key("a") < 2**64


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8), st.integers(1, 9)), max_size=4),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_a_shard_is_a_slice_of_the_whole(
    dims: list[tuple[int, int, int]], dtype: torch.dtype
) -> None:
    shape = [size for size, _, _ in dims]
    slices = tuple(slice(low, low + width) for _, low, width in dims)
    whole = randomness.init_tensor("normal", 7, "a.b", shape, dtype=dtype, std=0.02)
    shard = randomness.init_tensor("normal", 7, "a.b", shape, slices, dtype, std=0.02)
    assert torch.equal(shard, whole[slices])


def test_large_shards_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = randomness.init_tensor("normal", 3, "w", (50, 70))
    monkeypatch.setattr(randomness, "_CPU_BLOCKS", 5)
    for slices in itertools.product((slice(0, 50), slice(7, 20)), (slice(0, 70), slice(3, 40))):
        assert torch.equal(
            randomness.init_tensor("normal", 3, "w", (50, 70), slices), whole[slices]
        )


def test_a_strided_view_is_filled() -> None:
    store = torch.zeros(6, 10)
    randomness.fill_(store[:, 2:7], "normal", 3, "w", (6, 5), (0, 0))
    assert torch.equal(store[:, 2:7], randomness.init_tensor("normal", 3, "w", (6, 5)))
    assert store[:, :2].eq(0).all() and store[:, 7:].eq(0).all()


def test_a_stack_is_its_layers() -> None:
    paths = [f"body.{i}.attn.wq" for i in (4, 5, 6)]
    out = torch.empty(3, 8, 4)
    randomness.fill_stacked_(out, "fan_in", 11, paths, (8, 16), (0, 12), fan_in=8)
    for layer, path in zip(out, paths, strict=True):
        alone = randomness.init_tensor("fan_in", 11, path, (8, 16), fan_in=8)
        assert torch.equal(layer, alone[:, 12:])
    assert not torch.equal(out[0], out[1])


def test_kinds() -> None:
    assert randomness.init_tensor("zeros", 1, "a", (3,)).eq(0).all()
    assert randomness.init_tensor("ones", 1, "a", (3,)).eq(1).all()
    assert randomness.init_tensor("fan_in", 1, "a", (64, 512), fan_in=64).std().item() == (
        pytest.approx(0.125, rel=0.02)
    )
    one, two = (randomness.init_tensor("normal", seed, "a", (3,)) for seed in (1, 2))
    assert not torch.equal(one, two)
