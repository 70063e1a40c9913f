"""Small valid specs as text: every section of the language, every op that a model can hold.

All that the parts have in common are the dims; which parts there are, and how they are put
together, is drawn. The mesh is drawn with the spec, so that it divides what the schedule shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

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
)
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
HIDDEN = "[batch, seq, embed]"


class Drawn(NamedTuple):
    """A spec's text, the mesh that it is for (`data=2,tensor=2`, or empty), and its optimizer."""

    text: str
    mesh: str = ""
    optimizer: str = OPTIMIZERS[0]

    def __repr__(self) -> str:
        return f"mesh {self.mesh or '1'}\n{self.text}"


class Dims(NamedTuple):
    """Sizes, and whether the schedule shards what `shardable` names."""

    sizes: dict[str, int]
    sharded: tuple[str, ...]
    extents: dict[str, int]
    microbatches: int


def begun(line: str) -> str:
    """A plain tensor's declaration with how it begins, which only arrows may leave out."""
    plain = line.startswith("param ") and line.endswith("]")
    return f"{line} = normal(std: 0.3)" if plain else line


def section(head: str, lines: Sequence[str]) -> str:
    """A section's text."""
    return "\n".join((f"{head} {{", *(f"  {line}" for line in lines), "}"))


class Writer:
    """Draws, one thing at a time. The first of several choices is the simplest."""

    def __init__(self, draw: st.DrawFn, even_heads: bool) -> None:
        self.draw = draw
        self.even_heads = even_heads
        self.blocks: list[str] = []
        self.trainable: set[str] = set()

    def one(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def maybe(self, *lines: str) -> list[str]:
        """The lines, or none."""
        return list(lines) if self.draw(st.booleans()) else []

    def block(self, kind: str, params: Sequence[str], equations: Sequence[str]) -> str:
        """The name of a new block from hidden values to hidden values."""
        name = f"{kind}{len(self.blocks)}"
        subs = {line.split()[-1] for line in params if line.startswith("sub ")}
        if subs & self.trainable or any(line.startswith("param ") for line in params):
            self.trainable.add(name)
        lines = [*map(begun, params), *equations]
        self.blocks.append(section(f"block {name}(x: {HIDDEN}) -> {HIDDEN}", lines))
        return name

    # What hidden values can go through.

    def norm(self) -> str:
        kind = self.one(("rms_norm", "layer_norm"))
        scale, bias = self.maybe("param scale: [embed] = ones()"), self.maybe("param bias: [embed]")
        value = f"{kind}(x, over: embed, eps: 1e-2)"
        value += " * scale" * bool(scale) + " + bias" * bool(bias)
        return self.block("norm", [*scale, *bias], [f"return {value}"])

    def attention(self) -> str:
        kv = self.one(("kv_heads", "heads"))
        biased = self.one((False, True))
        heads = {"q": "heads", "k": kv, "v": kv}
        params = [f"param w{n}: embed -> ({h}, head_dim)" for n, h in heads.items()]
        params.append("param wo: (heads, head_dim) -> embed")
        found = {n: f"w{n}(x)" for n in heads}
        if biased:
            params += [f"param b{n}: [{h}, head_dim]" for n, h in heads.items()]
            found = {n: f"{value} + b{n}" for n, value in found.items()}
        equations = [f"{n} = {value}" for n, value in found.items()]
        if self.one((False, True)):
            params.append("param qk: [head_dim] = ones()")
            over = "over: head_dim, eps: 1e-2"
            equations += [f"n{n} = rms_norm({n}, {over}) * qk" for n in "qk"]
            names = {"q": "nq", "k": "nk", "v": "v"}
        else:
            names = {n: n for n in heads}
        layout = self.one(("", "half", "interleaved")) if self.even_heads else ""
        if layout:
            rope = f"along: seq, theta: 100, layout: {layout}"
            names |= {n: f"rope({names[n]}, {rope})" for n in "qk"}
        mask, scale = self.one(("causal", "none")), self.one(("", ", scale: 0.7"))
        heads_of = ", heads: heads" if kv == "heads" else ""
        mixed = f"attend({', '.join(names.values())}, along: seq, mask: {mask}{heads_of}{scale})"
        return self.block("attn", params, [*equations, f"return wo({mixed})"])

    def mlp(self) -> str:
        params = ["param up: embed -> ffn", "param down: ffn -> embed"]
        up, down = self.maybe("param up_bias: [ffn]"), self.maybe("param down_bias: [embed]")
        inner = "up(x)" + " + up_bias" * bool(up)
        gates = ("swiglu(gate(x), h)", "silu(gate(x)) * h")
        plain = ("relu(h)", "silu(h)", "gelu(h)", "gelu(h, approximate: tanh)", "relu(h) * h")
        act = self.one((*plain, *gates))
        gate = ["param gate: embed -> ffn"] if act in gates else []
        value = f"down({act})" + " + down_bias" * bool(down)
        return self.block("mlp", [*params, *gate, *up, *down], [f"h = {inner}", f"return {value}"])

    def mixer(self) -> str:
        """A parameter with one dim on both sides."""
        ways = ("mix(x)", "mix.T(x)", "mix(tanh(mix(x)))", "mix.T(mix(x))", "mix(x) * mix.T(x)")
        return self.block("mixer", ["param mix: embed -> embed"], [f"return {self.one(ways)}"])

    def similarity(self) -> str:
        """Attention written out in equations, over a renamed copy of the positions."""
        ways = (
            "softmax(s, over: key)",
            "s - mean[key](s)",
            "exp(log_softmax(s, over: key))",
            "tanh(s) - logsumexp(s, over: key)",
        )
        equations = [
            "y = x{seq = key}",
            "s = dot[embed](x, y) / sqrt(embed)",
            f"p = {self.one(ways)}",
            "return dot[key](p, y)",
        ]
        return self.block("similar", [], equations)

    def experts(self) -> str:
        """Plain tensors in contractions, with a softmax over a dim that may be divided."""
        ways = ("softmax(s, over: heads)", "s - max[heads](s)", "s * sum[heads](s)", "tanh(s)")
        equations = ["s = dot[embed](x, table)", f"p = {self.one(ways)}"]
        return self.block(
            "expert", ["param table: [heads, embed]"], [*equations, "return dot[heads](p, table)"]
        )

    def places(self) -> str:
        params = ["param place: seq -> embed"]
        value = self.one(("x + at", "x * at", "x + at - mean[seq](at)"))
        return self.block(
            "places", params, ["at = place(positions(along: seq))", f"return {value}"]
        )

    def pointwise(self) -> str:
        gain = self.one(("[embed]", "[]", "[seq, embed]"))
        ways = (
            "tanh(x) * gain",
            "where(less(x, gain), x, 0.1 * gain)",
            "max(x, gain) - min(x, 0.5)",
            "x / (1 + exp(-x * gain))",
            "sqrt(1 + x^2) - rsqrt(1 + gain^2)",
            "log(1 + x * x) + sin(x) * cos(gain)",
            "erf(x) - stop(x) * sigmoid(gain)",
            "abs(x - gain) * sign(x)",
            "(2 + sin(x))^gain",
            "-x + gain / 2",
        )
        return self.block("point", [f"param gain: {gain}"], [f"return {self.one(ways)}"])

    def sums(self) -> str:
        ways = (
            "x - mean[seq](x)",
            "x + sum[embed](x) / embed",
            "max[seq](x) * x",
            "sum[seq, embed](x * x) / (seq * embed) + x",
            "softmax(x, over: embed)",
            "log_softmax(x, over: (seq, embed))",
            "x - logsumexp(x, over: seq)",
            "rms_norm(x, over: (seq, embed), eps: 1e-2)",
        )
        return self.block("sums", [], [f"return {self.one(ways)}"])

    def branch(self) -> str:
        makers: tuple[Callable[[], str], ...] = (
            self.mlp,
            self.attention,
            self.mixer,
            self.pointwise,
            self.sums,
            self.similarity,
            self.experts,
            self.places,
            self.norm,
        )
        return self.one(makers)()

    # What they are put together to.

    def layer(self) -> str:
        """Branches with residuals around them: one behind the other or beside each other."""
        count = self.draw(st.integers(1, 3))
        subs: list[str] = []
        for number in range(count):
            before = f"sub norm{number}: {self.norm()}"
            subs += [*self.maybe(before), f"sub part{number}: {self.branch()}"]
        names = [line.split()[1].rstrip(":") for line in subs]
        inner = [
            f"part{n}(norm{n}({{}}))" if f"norm{n}" in names else f"part{n}({{}})"
            for n in range(count)
        ]
        if self.one((False, True)):
            total = " + ".join(("x", *(value.format("x") for value in inner)))
            return self.block("layer", subs, [f"return {total}"])
        plain = self.one(("{0} + {1}", "{1}", "0.5 * ({0} + {1})"))
        equations, last = list[str](), "x"
        for number, value in enumerate(inner):
            equations.append(f"h{number} = {plain.format(last, value.format(last))}")
            last = f"h{number}"
        return self.block("layer", subs, [*equations, f"return {last}"])

    def model(self) -> list[str]:
        """From tokens to logits; gives the stacks that have parameters."""
        tied = self.one((False, True))
        params = ["param embedding: vocab -> embed = normal(std: 0.5)"]
        params += [] if tied else ["param head: embed -> vocab"]
        value = "embedding(tokens)"
        start = self.maybe("param place: seq -> embed")
        value += " + place(positions(along: seq))" * bool(start)
        equations, parts = [f"e = {value}"], list[str]()
        if self.one((False, True)):
            parts.append(f"sub shared: {self.branch()}")
            equations.append("e1 = shared(e)")
        layer, trained = self.layer(), list[str]()
        stacks = self.one((("body",), (), ("body", "tail"), ("body", "tail")))
        for stack in stacks:
            parts.append(f"stack {stack}: {layer} over {self.one(('layers', 'deep'))}")
            trained += [stack] if layer in self.trainable else []
            layer = self.one((layer, self.layer()))
        if not stacks:
            parts.append(f"sub only: {layer}")
        names = [part.split()[1].rstrip(":") for part in parts]
        names += self.maybe("shared") if "shared" in names else []
        last = "e1" if "shared" in names else "e"
        for name in [name for name in names if name != "shared"]:
            equations.append(f"{name}_out = {name}({last})")
            last = f"{name}_out"
        if names.count("shared") == 2:
            last = f"shared({last})"
        if self.one((False, True)):
            parts.append(f"sub final: {self.norm()}")
            last = f"final({last})"
        logits = f"embedding.T({last})" if tied else f"head({last})"
        cap = self.one(("z", "3 * tanh(z / 3)", "z + shift", "z - max[vocab](z)"))
        params += ["param shift: [vocab]"] if "shift" in cap else []
        params = [begun(line) for line in (*params, *start)]
        lines = [*params, *parts, *equations, f"z = {logits}", f"return {cap}"]
        head = "model net(tokens: vocab[batch, seq]) -> [batch, seq, vocab]"
        self.blocks.append(section(head, lines))
        return trained


@st.composite
def dims(draw: st.DrawFn, mesh: str) -> Dims:
    """Sizes that the mesh divides where the schedule shards them."""
    extents = {axis: int(size) for axis, size in (a.split("=") for a in mesh.split(",") if a)}
    microbatches = draw(st.sampled_from((1, 2, 4)))
    split = extents.get("tensor", 1)
    heads = draw(st.sampled_from(((), ("heads", "kv_heads")))) if split > 1 else ()
    others = [dim for dim in ("ffn", "vocab") if split > 1 and draw(st.booleans())]
    sharded = (*heads, *others) or (("ffn",) if split > 1 else ())

    def size(name: str, most: int = 6) -> int:
        unit = split if name in sharded else 1
        if name == "embed":
            unit = extents.get("fsdp", extents.get("data", 1))
        return unit * draw(st.integers(1, max(1, most // unit)))

    ranks = extents.get("data", 1) * extents.get("fsdp", 1)
    kv_heads = size("kv_heads", 4 if "kv_heads" in sharded else 2)
    sizes = {
        "batch": ranks * microbatches * draw(st.integers(1, 2)),
        "seq": draw(st.integers(1, 4)),
        "vocab": size("vocab"),
        "embed": size("embed"),
        "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.integers(1, 6 // kv_heads if kv_heads < 4 else 1)),
        "head_dim": draw(st.sampled_from((2, 1, 3, 4))),
        "ffn": size("ffn"),
        "layers": draw(st.integers(1, 3)),
        "deep": draw(st.integers(1, 2)),
    }
    return Dims(sizes, sharded, extents, microbatches)


@st.composite
def schedules(
    draw: st.DrawFn, found: Dims, stacks: Sequence[str], trained: Sequence[str]
) -> list[str]:
    """The lines of a schedule."""
    batch_axes = [axis for axis in ("data", "fsdp") if axis in found.extents]
    lines = [f"shard batch over ({', '.join(batch_axes)})"] if batch_axes else []
    if found.sharded:
        lines.append(f"shard ({', '.join(found.sharded)}) over tensor")
    if batch_axes and draw(st.booleans()):
        where = draw(st.sampled_from(("*", "*", "embedding", *(f"{s}.*" for s in trained))))
        lines.append(f"shard embed over {batch_axes[-1]} in {where}")
    for stack in stacks:
        if draw(st.booleans()):
            keep = draw(st.sampled_from(("", " keep [part0]", " keep []")))
            lines.append(f"recompute {stack}.*{keep}")
    if draw(st.integers(0, 5)) == 5:
        lines.append("recompute *")
    return [*lines, f"microbatches: {found.microbatches}"]


@st.composite
def adapters(draw: st.DrawFn, stacks: Sequence[str]) -> list[str]:
    """The lines of an adapter on the model; something is left to train."""
    lines: list[str] = []
    frozen = draw(st.sampled_from(("embedding", "*", *(f"{stack}.*" for stack in stacks))))
    lines.append(f"freeze {frozen}")
    if draw(st.booleans()):
        rate = draw(st.sampled_from(("", "    dropout: 0.4\n")))
        where = draw(st.sampled_from(("*", "embedding")))
        lines.append(f"lora {where} {{\n    rank: 2\n    alpha: 3\n{rate}  }}")
    elif frozen == "*" or len(stacks) == 0:
        lines.append(f"tune {draw(st.sampled_from(('embedding', *(f'{s}.*' for s in stacks))))}")
    return lines


@st.composite
def specs(draw: st.DrawFn, meshes: Sequence[str] = MESHES) -> Drawn:
    """A spec with everything drawn."""
    mesh = draw(st.sampled_from(meshes))
    found = draw(dims(mesh))
    writer = Writer(draw, found.sizes["head_dim"] % 2 == 0)
    trained = writer.model()
    stacks = [s for s in ("body", "tail") if f"stack {s}:" in writer.blocks[-1]]
    adapter = draw(adapters(trained)) if draw(st.booleans()) else []
    subject = "tuned" if adapter else "net"
    optimizer = draw(st.sampled_from(OPTIMIZERS))
    z_loss = draw(st.sampled_from(("", "z_loss: 0.1")))
    train = [
        "data: text",
        f"loss: cross_entropy({z_loss})",
        f"optimizer: {optimizer}",
        *(["no_decay: [embedding]"] if "decay" in optimizer and draw(st.booleans()) else []),
        f"rate: {draw(st.sampled_from(RATES))}",
        *draw(st.sampled_from(([], ["clip: 0.1"]))),
        "steps: 5",
        f"precision: {draw(st.sampled_from(PRECISIONS))}",
    ]
    own = {n: s for n, s in found.sizes.items() if n not in ("batch", "seq")}
    declared = ["batch", "seq", *(f"{n} = {s}" for n, s in own.items()), "key = seq"]
    data = ['source: "text"', 'tokenizer: "t.json"']
    data += [f"{n}: {found.sizes[n]}" for n in ("batch", "seq")]
    parts = [
        "fllm 1",
        section("dims", declared),
        *writer.blocks,
        *([section("adapter tuned on net", adapter)] if adapter else []),
        section("data text", data),
        section(f"train run: {subject}", train),
        section("schedule placed for run", draw(schedules(found, stacks, trained))),
    ]
    return Drawn("\n\n".join(parts) + "\n", mesh, optimizer)
