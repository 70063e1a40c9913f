"""Random models as text: blocks of every kind, and how they are put together.

All that the blocks have in common are the dims, and that most take hidden values to hidden values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

HIDDEN = "[batch, seq, embed]"


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
        layout = self.one(("half", "", "interleaved")) if self.even_heads else ""
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
        plain = ("relu(h)", "silu(h)", "gelu(h)", "gelu(h, approximate: tanh)", "relu(h) * tanh(h)")
        act = self.one((*plain, *gates))
        gate = ["param gate: embed -> ffn"] if act in gates else []
        value = f"down({act})" + " + down_bias" * bool(down)
        return self.block("mlp", [*params, *gate, *up, *down], [f"h = {inner}", f"return {value}"])

    def mixer(self) -> str:
        """A parameter with one dim on both sides."""
        ways = (
            "mix(x)",
            "mix.T(x)",
            "mix(tanh(mix(x)))",
            "mix.T(mix(x))",
            "tanh(mix(x)) * mix.T(x)",
        )
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
            "s = tanh(dot[embed](x, y) / sqrt(embed))",
            f"p = {self.one(ways)}",
            "return dot[key](p, y)",
        ]
        return self.block("similar", [], equations)

    def experts(self) -> str:
        """Plain tensors in contractions, with a softmax over a dim that may be divided."""
        ways = (
            "softmax(s, over: heads)",
            "s - max[heads](s)",
            "tanh(s) * sum[heads](s)",
            "tanh(s)",
        )
        equations = ["s = dot[embed](x, table)", f"p = {self.one(ways)}"]
        return self.block(
            "expert", ["param table: [heads, embed]"], [*equations, "return dot[heads](p, table)"]
        )

    def mixture(self) -> str:
        """Experts that tokens are sent to, dropless or with a capacity."""
        slots = self.one((False, True))
        of = "(experts, slots)" if slots else "routed"
        params = ["param router: embed -> experts"]
        params += ["param wide: [experts, embed, ffn]", "param narrow: [experts, ffn, embed]"]
        by = "dot" if slots else "expert_dot"
        also = "" if slots else ", chosen, along: seq"
        score = self.one(("softmax(router(x), over: experts)", "tanh(router(x))"))
        weights = self.one(("top / (0.1 + sum[choices](top^2))", "tanh(top)"))
        act = self.one(("tanh(h)", "h", "swiglu(h, h)"))
        share = "tally(chosen, along: seq) / seq"
        penalties = self.maybe(f"penalty even = sum[experts]({share} * mean[seq](scores))")
        penalties += self.maybe("penalty small = 0.1 * sum[experts](scores^2)")
        equations = [
            f"scores = {score}",
            "chosen = top_k_indices(scores, over: experts, to: choices)",
            "top = top_k(scores, over: experts, to: choices)",
            *penalties,
            f"weights = dispatch({weights}, chosen, along: seq, to: {of})",
            f"h = {by}[embed](dispatch(x, chosen, along: seq, to: {of}), wide{also})",
            f"y = {by}[ffn]({act}, narrow{also}) * weights",
            f"return combine(y, chosen, along: seq, of: {of})",
        ]
        return self.block("mixture", params, equations)

    def places(self) -> str:
        params = ["param place: seq -> embed"]
        value = self.one(("x + at", "x * at", "x + at - mean[seq](at)"))
        return self.block(
            "places", params, ["at = place(positions(along: seq))", f"return {value}"]
        )

    def pointwise(self) -> str:
        """An equation grown at random, bounded so that a stack of them stays finite."""
        gain = self.one(("[embed]", "[]", "[seq, embed]", "[seq]"))
        return self.block(
            "point", [f"param gain: {gain}"], [f"return x + tanh({self.grown(3)}) * gain"]
        )

    def grown(self, depth: int) -> str:
        """An expression over x and gain that is finite wherever they are."""
        leaves = ("x", "gain", "0.5", "mean[seq](x)", "max[embed](x)", "stop(x)")
        if not depth or self.one((False, True)):
            return self.one(leaves)
        a, b = self.grown(depth - 1), self.grown(depth - 1)
        ways = (
            f"tanh({a})",
            f"({a} + {b})",
            f"({a} - {b})",
            f"{a} * {b}",
            f"{a} / (1 + ({b})^2)",
            f"where(less({a}, {b}), x, {a})",
            f"max({a}, {b})",
            f"min({a}, {b})",
            f"sqrt(1 + ({a})^2)",
            f"rsqrt(1 + ({a})^2)",
            f"log(1 + ({a})^2)",
            f"exp(-({a})^2)",
            f"sin({a})",
            f"cos({a})",
            f"erf({a})",
            f"sigmoid({a})",
            f"abs({a})",
            f"sign({a})",
            f"gelu({a})",
            f"(2 + sin({a}))^tanh({b})",
            f"(-{a})",
        )
        return self.one(ways)

    def sums(self) -> str:
        ways = (
            "x - mean[seq](x)",
            "x + sum[embed](x) / embed",
            "max[seq](tanh(x)) * x",
            "sum[seq, embed](x * tanh(x)) / (seq * embed) + x",
            "softmax(x, over: embed)",
            "log_softmax(x, over: (seq, embed))",
            "x - logsumexp(x, over: seq)",
            "rms_norm(x, over: (seq, embed), eps: 1e-2)",
        )
        return self.block("sums", [], [f"return {self.one(ways)}"])

    def positions_mixed(self) -> str:
        """A map over positions, which leaves the dims in an order of its own."""
        ways = (
            "tanh(over(x)){key = seq}",
            "over.T(x{seq = key})",
            "x - over(over.T(x{seq = key})){key = seq}",
        )
        return self.block("mixed", ["param over: seq -> key"], [f"return {self.one(ways)}"])

    def crossed(self) -> str:
        """A block of two inputs, used twice, whose results have other dims."""
        inner = f"cross{len(self.blocks)}"
        ways = ("tanh(into(x)) * into(y)", "tanh(into(x)) + into(y)", "into(x * tanh(y))")
        lines = ["param into: embed -> ffn", f"return {self.one(ways)}"]
        head = f"block {inner}(x: {HIDDEN}, y: {HIDDEN}) -> [batch, seq, ffn]"
        self.blocks.append(section(head, lines))
        params = ["param back: ffn -> embed", f"sub first: {inner}", f"sub second: {inner}"]
        uses = ("first(x, x) + second(x, x)", "first(x, back(second(x, x)))", "first(x, x)")
        return self.block("crossed", params, [f"return back({self.one(uses)})"])

    def branch(self) -> str:
        makers: tuple[Callable[[], str], ...] = (
            self.mlp,
            self.attention,
            self.mixer,
            self.pointwise,
            self.sums,
            self.similarity,
            self.experts,
            self.mixture,
            self.crossed,
            self.positions_mixed,
            self.attention,
            self.attention,
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
