"""Small valid specs as text: every section of the language around a random model.

The mesh is drawn with the spec, so that it divides what the schedule shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import NamedTuple

from hypothesis import strategies as st

from tests.specs.random_models import Writer, section

MESHES = (
    "",
    "data=2",
    "tensor=2",
    "data=2,tensor=2",
    "fsdp=2",
    "data=2,fsdp=2",
    "fsdp=2,tensor=2",
    "data=4",
    "tensor=4",
    "data=3",
    "fsdp=2,tensor=2",
    "data=2,fsdp=2",
    "fsdp=4",
    "expert=2",
    "data=2,expert=2",
    "expert=2,tensor=2",
)
MADE = ("key = seq", "routed = seq * choices")
"""Dims that others give."""
OPTIMIZERS = (
    "adamw(betas: (0.9, 0.95), eps: 1e-4, weight_decay: 0.1)",
    "adam(eps: 1e-3)",
    "sgd(momentum: 0.9, nesterov: true, weight_decay: 0.1)",
    "sgd()",
    "lion(weight_decay: 0.1)",
)
RATES = (
    "constant(peak: 0.1)",
    "cosine(peak: 0.1, floor: 0.01, warmup: 2)",
    "linear(peak: 0.1, warmup: 3)",
    "wsd(peak: 0.1, decay: 0.5)",
)
PRECISIONS = ("f64", "f32", "policy(params: f32, compute: bf16, reduce: f32)", "bf16")


class Drawn(NamedTuple):
    """A spec's text, the mesh that it is for (`data=2,tensor=2`, or empty), and its optimizer."""

    text: str
    mesh: str = ""
    optimizer: str = OPTIMIZERS[0]

    def __repr__(self) -> str:
        return f"mesh {self.mesh or '1'}\n{self.text}"


class Parts(NamedTuple):
    """What the other sections need to know of a model: its stacks, whether it attends, whether
    it has experts.

    `trained` are the stacks that have parameters.
    """

    stacks: tuple[str, ...]
    trained: tuple[str, ...]
    attends: bool
    mixes: bool
    even_heads: bool


class Placement(NamedTuple):
    """The lines that shard, and what each dim's size has to be a multiple of."""

    lines: list[str]
    units: dict[str, int]


@st.composite
def placements(draw: st.DrawFn, mesh: str, parts: Parts) -> Placement:
    """Directives that suit the mesh: the batch, then one sort of dims, then stored parameters."""
    extents = {axis: int(size) for axis, size in (a.split("=") for a in mesh.split(",") if a)}
    lines: list[str] = []
    units: dict[str, int] = {}

    def shard(dims: Sequence[str], axes: Sequence[str], where: str = "") -> None:
        shown = [f"({', '.join(names)})" if len(names) > 1 else names[0] for names in (dims, axes)]
        lines.append(f"shard {shown[0]} over {shown[1]}{where}")
        for dim in dims:
            for axis in axes:
                units[dim] = units.get(dim, 1) * extents[axis]

    ranks = [axis for axis in ("data", "fsdp") if axis in extents]
    tokens = [axis for axis in ("data", "fsdp", "expert") if axis in extents]
    if tokens:
        shard(("batch",), tokens)
    if "tensor" in extents:
        megatron = [("ffn",), ("ffn", "vocab"), ("heads", "kv_heads", "ffn", "vocab")]
        others = [("heads", "kv_heads"), ("embed",), *([] if parts.attends else [("seq",)])]
        shard(draw(st.sampled_from([*megatron, *others])), ("tensor",))
    if "expert" in extents and parts.mixes:
        shard(("experts",), ("expert",))
    if ranks and draw(st.integers(0, 3)):
        where = draw(st.sampled_from(("*", "embedding", *(f"{s}.*" for s in parts.trained))))
        dim = draw(st.sampled_from(("embed", "ffn", "vocab", "head_dim")))
        shard((dim,), ranks[-1:], f" in {where}")
        if "embed" not in lines[-1] and len(ranks) > 1:
            shard(("embed",), ranks[:1], " in *")
    choices = yielding([axis for axis in extents if axis != "expert"], lines)
    for dims, axis in draw(st.lists(st.sampled_from(choices), max_size=2)) if choices else ():
        if not any(dims[0] in line and "elsewhere" in line for line in lines):
            shard(dims, (axis,), " elsewhere")
    return Placement(lines, units)


def yielding(axes: Sequence[str], lines: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """Dims with an axis that they may yield on: one that no line puts them on already."""
    dims = (("seq",), ("embed",), ("heads", "kv_heads"), ("ffn",), ("batch",), ("vocab",))
    return [
        (group, axis)
        for axis in (*axes, *axes[-1:] * 2)
        for group in dims
        if not any(group[0] in line and axis in line and " in " not in line for line in lines)
    ]


@st.composite
def sizes(draw: st.DrawFn, units: dict[str, int], parts: Parts, batches: int) -> dict[str, int]:
    """Sizes of 1 to 6, more where the mesh asks for more."""

    def size(name: str, most: int, least: int = 1) -> int:
        unit = lcm(least, units.get(name, 1))
        # A dim of size 1 hides much, as a softmax over it does, so it is not the simplest.
        return unit * draw(st.sampled_from([*range(2, most // unit + 1), 1]))

    kv_heads = size("kv_heads", 3)
    experts = draw(st.integers(1, 3))
    return {
        "batch": size("batch", 1) * batches * draw(st.integers(1, 2)),
        "seq": size("seq", 4),
        "vocab": size("vocab", 6),
        "embed": size("embed", 6),
        "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.integers(1, max(1, 6 // kv_heads))),
        "head_dim": size("head_dim", 4, 2 if parts.even_heads else 1),
        "ffn": size("ffn", 6),
        "layers": draw(st.integers(1, 3)),
        "deep": draw(st.integers(1, 2)),
        "experts": experts * units.get("experts", 1),
        "choices": draw(st.integers(1, min(experts, 2))),
        "slots": draw(st.integers(1, 3)),
    }


@st.composite
def recomputes(draw: st.DrawFn, stacks: Sequence[str]) -> list[str]:
    """The lines that say what is not kept."""
    keep = st.sampled_from(("", " keep [part0]", " keep []"))
    lines = [f"recompute {stack}.*{draw(keep)}" for stack in stacks if draw(st.booleans())]
    return lines + ["recompute *"] * (draw(st.integers(0, 5)) == 5)


@st.composite
def adapters(draw: st.DrawFn, trained: Sequence[str]) -> list[str]:
    """The lines of an adapter on the model; something is left to train."""
    stacks = tuple(f"{stack}.*" for stack in trained)
    frozen = draw(st.sampled_from(("embedding", "*", *stacks)))
    lines = [f"freeze {frozen}"]
    if draw(st.booleans()):
        rate = draw(st.sampled_from(("", "    dropout: 0.4\n")))
        where = draw(st.sampled_from(("*", "embedding")))
        lines.append(f"lora {where} {{\n    rank: 2\n    alpha: 3\n{rate}  }}")
    elif frozen == "*" or not trained:
        lines.append(f"tune {draw(st.sampled_from(('embedding', *stacks)))}")
    return lines


@st.composite
def trains(draw: st.DrawFn, subject: str, optimizer: str) -> str:
    """A train section."""
    decays = "decay" in optimizer and draw(st.booleans())
    lines = [
        "data: text",
        f"loss: cross_entropy({draw(st.sampled_from(('', 'z_loss: 0.1')))})",
        f"optimizer: {optimizer}",
        *(["no_decay: [embedding]"] if decays else []),
        f"rate: {draw(st.sampled_from(RATES))}",
        *draw(st.sampled_from(([], ["clip: 0.1"]))),
        "steps: 5",
        f"precision: {draw(st.sampled_from(PRECISIONS))}",
    ]
    return section(f"train run: {subject}", lines)


@st.composite
def specs(draw: st.DrawFn, meshes: Sequence[str] = MESHES) -> Drawn:
    """A spec with everything drawn."""
    mesh = draw(st.sampled_from(meshes))
    writer = Writer(draw, draw(st.booleans()))
    trained = writer.model()
    stacks = tuple(s for s in ("body", "tail") if f"stack {s}:" in writer.blocks[-1])
    whole = ("attend(", "top_k(")
    attends = any(mark in block for block in writer.blocks for mark in whole)
    mixes = any("top_k(" in block for block in writer.blocks)
    parts = Parts(stacks, tuple(trained), attends, mixes, writer.even_heads)
    placement = draw(placements(mesh, parts))
    microbatches = draw(st.sampled_from((1, 2, 4)))
    found = draw(sizes(placement.units, parts, microbatches))
    adapter = draw(adapters(trained)) if draw(st.booleans()) else []
    optimizer = draw(st.sampled_from(OPTIMIZERS))
    own = {n: s for n, s in found.items() if n not in ("batch", "seq")}
    data = ['source: "text"', 'tokenizer: "t.json"']
    recompute = draw(recomputes(stacks))
    sections = [
        "fllm 1",
        section("dims", ["batch", "seq", *(f"{n} = {s}" for n, s in own.items()), *MADE]),
        *writer.blocks,
        *([section("adapter tuned on net", adapter)] if adapter else []),
        section("data text", [*data, *(f"{n}: {found[n]}" for n in ("batch", "seq"))]),
        draw(trains("tuned" if adapter else "net", optimizer)),
        section(
            "schedule placed for run",
            [*placement.lines, *recompute, f"microbatches: {microbatches}"],
        ),
    ]
    return Drawn("\n\n".join(sections) + "\n", mesh, optimizer)
