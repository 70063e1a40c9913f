"""A training step of a small Llama, written out by hand: forward, backward, clipping, momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.program import DimSize, Function, Init, Parameter, Program
from fllmc.ir.settings import Shard
from fllmc.ir.types import HOST_SCALAR, Axis, Dim, Mesh, Sizes, indices, tensor

DIMS = {
    "microbatches": 2,
    "batch": 4,
    "seq": 4,
    "embed": 8,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 2,
    "ffn": 12,
    "vocab": 12,
    "layers": 2,
}
SIZES = Sizes(DIMS)
LAYER: Mapping[str, tuple[str, ...]] = {
    "attn_norm.scale": ("embed",),
    "attn.wq": ("embed", "heads", "head_dim"),
    "attn.wk": ("embed", "kv_heads", "head_dim"),
    "attn.wv": ("embed", "kv_heads", "head_dim"),
    "attn.wo": ("heads", "head_dim", "embed"),
    "mlp_norm.scale": ("embed",),
    "mlp.gate": ("embed", "ffn"),
    "mlp.up": ("embed", "ffn"),
    "mlp.down": ("ffn", "embed"),
}
TOP: Mapping[str, tuple[str, ...]] = {
    "embedding": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "final_norm.scale": ("embed",),
}
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    **TOP,
    **{f"body.{name}": ("layers", *dims) for name, dims in LAYER.items()},
}
ROWS = ("batch", "seq")
SAVED = ("x", "h", "q", "k", "v", "o", "lse")
ATTEND = ("seq", "heads", "kv_heads", "head_dim", 0.7)

MEGATRON = (
    Shard(("batch",), ("data",)),
    Shard(("heads", "kv_heads", "ffn", "vocab"), ("tensor",)),
)
FSDP = (*MEGATRON, Shard(("embed",), ("data",), "*"))
SEQUENCE = (*MEGATRON, Shard(("seq",), ("tensor",), elsewhere=True))


def mesh(data: int, tensor: int) -> Mesh:
    """A mesh of axes data and tensor."""
    return Mesh((Axis("data", data), Axis("tensor", tensor)))


class Writer(Builder):
    """A builder with the few composites that the step is made of."""

    def sharp(self, value: int) -> int:
        return self.cast(value, "bf16")

    def dot(self, a: int, b: int, *over: str) -> int:
        return self.one(ops.Dot(over), a, b)

    def inverse_norm(self, wide: int) -> int:
        squares = self.sum(self.mul(wide, wide), ("embed",))
        mean = self.mul(squares, self.constant(1 / DIMS["embed"]))
        return self.rsqrt(self.add(mean, self.constant(1e-5)))

    def norm(self, x: int, scale: int) -> int:
        wide = self.cast(x, "f32")
        return self.sharp(self.mul(self.mul(wide, self.inverse_norm(wide)), scale))

    def norm_grad(self, x: int, scale: int, dy: int) -> tuple[int, int]:
        wide, dy = self.cast(x, "f32"), self.cast(dy, "f32")
        inverse = self.inverse_norm(wide)
        g = self.mul(dy, scale)
        inner = self.mul(self.sum(self.mul(g, wide), ("embed",)), self.constant(1 / DIMS["embed"]))
        cube = self.mul(self.mul(inverse, inverse), inverse)
        dx = self.sub(self.mul(inverse, g), self.mul(self.mul(wide, cube), inner))
        dscale = self.sum(self.mul(dy, self.mul(wide, inverse)), ROWS)
        return self.sharp(dx), dscale


def forward() -> Function:
    """One layer: (x, weights) -> (z, saved)."""
    b = Writer("forward", SIZES)
    x = b.input("x", tensor("bf16", *ROWS, "embed"))
    w = {name: b.input(name, tensor("f32", *dims)) for name, dims in LAYER.items()}
    b.path = "attn"
    n = b.norm(x, w["attn_norm.scale"])
    q, k, v = (b.dot(n, b.sharp(w[f"attn.{name}"]), "embed") for name in ("wq", "wk", "wv"))
    q, k = (b.one(ops.Rope("seq", "head_dim"), value) for value in (q, k))
    o, lse = b.emit(ops.Attend(*ATTEND), q, k, v)
    h = b.add(x, b.dot(o, b.sharp(w["attn.wo"]), "heads", "head_dim"))
    b.path = "mlp"
    n = b.norm(h, w["mlp_norm.scale"])
    gate, up = (b.dot(n, b.sharp(w[f"mlp.{name}"]), "embed") for name in ("gate", "up"))
    act = b.mul(b.mul(gate, b.one(ops.Sigmoid(), gate)), up)
    z = b.add(h, b.dot(act, b.sharp(w["mlp.down"]), "ffn"))
    return b.finish([z, x, h, q, k, v, o, lse], ["z", *SAVED])


def backward(f: Function) -> Function:
    """One layer's gradient: (dz, saved, weights, accumulators) -> (dx, accumulators)."""
    b = Writer("backward", SIZES)
    dz = b.input("dz", tensor("bf16", *ROWS, "embed"))
    kinds = dict(zip(f.outputs, f.signature.results, strict=True))
    s = {name: b.input(name, kinds[name]) for name in SAVED}
    w = {name: b.input(name, tensor("f32", *dims)) for name, dims in LAYER.items()}
    acc = {name: b.input(f"acc.{name}", tensor("f32", *dims)) for name, dims in LAYER.items()}
    b.path = "mlp"
    n = b.norm(s["h"], w["mlp_norm.scale"])
    wg, wu, wd = (b.sharp(w[f"mlp.{name}"]) for name in ("gate", "up", "down"))
    gate, up = b.dot(n, wg, "embed"), b.dot(n, wu, "embed")
    sig = b.one(ops.Sigmoid(), gate)
    silu = b.mul(gate, sig)
    da = b.dot(dz, wd, "embed")
    slope = b.mul(sig, b.add(b.constant(1), b.mul(gate, b.sub(b.constant(1), sig))))
    dgate, dup = b.mul(b.mul(da, up), slope), b.mul(da, silu)
    dn = b.one(ops.AddN(), b.dot(dgate, wg, "ffn"), b.dot(dup, wu, "ffn"))
    back, dscale = b.norm_grad(s["h"], w["mlp_norm.scale"], dn)
    dh = b.add(dz, back)
    found = {
        "mlp.down": b.dot(b.mul(silu, up), dz, *ROWS),
        "mlp.gate": b.dot(n, dgate, *ROWS),
        "mlp.up": b.dot(n, dup, *ROWS),
        "mlp_norm.scale": dscale,
    }
    dx = attention_grad(b, s, w, dh, found)
    new = [b.add(acc[name], b.cast(found[name], "f32")) for name in LAYER]
    return b.finish([dx, *new], ["dx", *(f"acc.{name}" for name in LAYER)])


def attention_grad(
    b: Writer, s: Mapping[str, int], w: Mapping[str, int], dh: int, found: dict[str, int]
) -> int:
    """The gradient of the attention half of a layer; those of weights are put into `found`."""
    b.path = "attn"
    n = b.norm(s["x"], w["attn_norm.scale"])
    wq, wk, wv, wo = (b.sharp(w[f"attn.{name}"]) for name in ("wq", "wk", "wv", "wo"))
    do = b.dot(dh, wo, "embed")
    found["attn.wo"] = b.dot(s["o"], dh, *ROWS)
    dq, dk, dv = b.emit(ops.AttendGrad(*ATTEND), *(s[name] for name in SAVED[2:]), do)
    dq, dk = (b.one(ops.Rope("seq", "head_dim", inverse=True), value) for value in (dq, dk))
    for name, grad in (("wq", dq), ("wk", dk), ("wv", dv)):
        found[f"attn.{name}"] = b.dot(n, grad, *ROWS)
    dn = b.one(
        ops.AddN(),
        b.dot(dq, wq, "heads", "head_dim"),
        b.dot(dk, wk, "kv_heads", "head_dim"),
        b.dot(dv, wv, "kv_heads", "head_dim"),
    )
    back, found["attn_norm.scale"] = b.norm_grad(s["x"], w["attn_norm.scale"], dn)
    return b.add(dh, back)


def micro(f: Function, g: Function) -> Function:
    """One microbatch: (loss, accumulators, tokens, targets, weights) -> (loss, accumulators)."""
    b = Writer("micro", SIZES, {f.name: f.signature, g.name: g.signature})
    loss = b.input("loss", tensor("f32"))
    acc = {n: b.input(f"acc.{n}", tensor("f32", *dims)) for n, dims in PARAMETERS.items()}
    tokens, targets = (b.input(n, indices("vocab", *ROWS)) for n in ("tokens", "targets"))
    w = {n: b.input(n, tensor("f32", *dims)) for n, dims in PARAMETERS.items()}
    layers = [w[f"body.{name}"] for name in LAYER]
    b.path = "embedding"
    x = b.one(ops.Take("vocab"), b.sharp(w["embedding"]), tokens)
    x, *saved = b.emit(ops.Scan("forward", "layers", 1, len(layers)), x, *layers)
    b.path = "head"
    n, head = b.norm(x, w["final_norm.scale"]), b.sharp(w["head"])
    logits = b.cast(b.dot(n, head, "embed"), "f32")
    top = b.one(ops.ReduceMax(("vocab",)), logits)
    weights = b.exp(b.sub(logits, top))
    total = b.sum(weights, ("vocab",))
    nll = b.sub(b.add(b.one(ops.Log(), total), top), b.one(ops.Pick("vocab"), logits, targets))
    loss = b.add(loss, b.sum(nll, ROWS))
    one = b.one(ops.Fill(1.0, "f32", tuple(Dim(name) for name in ROWS)))
    wrong = b.sub(b.div(weights, total), b.one(ops.Spread(Dim("vocab")), one, targets))
    dlogits = b.sharp(b.mul(wrong, b.constant(1 / 24)))
    dx, dscale = b.norm_grad(x, w["final_norm.scale"], b.dot(dlogits, head, "vocab"))
    found = {"head": b.dot(n, dlogits, *ROWS), "final_norm.scale": dscale}
    b.path = "body"
    sums = [acc[f"body.{name}"] for name in LAYER]
    scan = ops.Scan("backward", "layers", 1, len(saved) + 2 * len(layers), reverse=True)
    dx, *new = b.emit(scan, dx, *saved, *layers, *sums)
    b.path = "embedding"
    found["embedding"] = b.one(ops.Put(Dim("vocab")), tokens, dx)
    tops = [b.add(acc[name], b.cast(found[name], "f32")) for name in TOP]
    return b.finish([loss, *tops, *new], ["loss", *(f"acc.{name}" for name in PARAMETERS)])


def step(m: Function) -> Function:
    """The whole step: all microbatches, the clipped gradient, momentum, the new weights."""
    b = Writer("step", SIZES, {m.name: m.signature})
    w = {n: b.input(n, tensor("f32", *dims), "param") for n, dims in PARAMETERS.items()}
    momenta = {n: b.input(f"{n}.m", tensor("f32", *d), "state") for n, d in PARAMETERS.items()}
    data = [
        b.input(n, indices("vocab", "microbatches", *ROWS), "data") for n in ("tokens", "targets")
    ]
    rate = b.input("rate", HOST_SCALAR, "host")
    zeros = [b.zeros(tensor("f32", *dims)) for dims in PARAMETERS.values()]
    scan = ops.Scan("micro", "microbatches", 1 + len(zeros), 2)
    loss, *grads = b.emit(scan, b.zeros(tensor("f32")), *zeros, *data, *w.values())
    b.path = "clip"
    squares = [b.sum(b.mul(g, g), b.types[g].names) for g in grads]
    norm = b.one(ops.Sqrt(), b.one(ops.AddN(), *squares))
    clip = b.one(ops.Minimum(), b.constant(1), b.div(b.constant(0.1), norm))
    outputs = {"loss": b.mul(loss, b.constant(1 / 24)), "norm": norm}
    for (name, weight), grad in zip(w.items(), grads, strict=True):
        b.path = f"optimizer.{name}"
        old = b.mul(momenta[name], b.constant(0.9))
        outputs[f"{name}.m"] = b.add(old, b.mul(grad, clip))
        outputs[name] = b.sub(weight, b.mul(outputs[f"{name}.m"], rate))
    return b.finish(list(outputs.values()), list(outputs))


def llama() -> Program:
    """The training program of one step."""
    f = forward()
    g = backward(f)
    m = micro(f, g)
    return Program(
        "training",
        tuple(DimSize(name, size) for name, size in DIMS.items()),
        (f, g, m, step(m)),
        ("step",),
        tuple(parameter(name, dims) for name, dims in PARAMETERS.items()),
    )


def parameter(name: str, dims: Sequence[str]) -> Parameter:
    """A parameter; those under `body` are a stack's."""
    stacked = name.startswith("body.")
    return Parameter(
        name,
        tensor("f32", *dims),
        Init("normal", 0.3),
        stack="layers" if stacked else "",
        depth=1 if stacked else 0,
    )


def arguments(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, momenta and tokens."""
    rng = np.random.default_rng(seed)
    function = program.function("step")
    found: dict[str, np.ndarray] = {}
    for given, kind in zip(function.inputs, function.types, strict=False):
        shape = SIZES.shape(kind)
        drawn = rng.integers(0, 12, shape) if kind.index else rng.normal(0, 0.3, shape)
        found[given.name] = np.asarray(0.05) if given.role == "host" else drawn
    return found
