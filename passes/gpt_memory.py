"""Memory of a GPT on a mesh in closed form (Korthikanti et al. 2022, arXiv 2205.05198).

What the plan lays out is counted tensor by tensor and needs none of this. These formulas are what
is known of the usual implementation in 16 bits, to hold plans and other frameworks against. They
leave out what is small: embeddings, biases, and the statistics of rows. All results are exact.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final, Literal

import msgspec

STATE_BYTES: Final = 18
"""A parameter with its gradient and Adam's state: 2 + 4 bytes and 12 (section 4, table 1)."""


class Shape(msgspec.Struct, frozen=True):
    """The paper's letters: s tokens of b sequences in a micro-batch, width h, a heads, L layers."""

    s: int
    b: int
    h: int
    a: int
    layers: int


class Split(msgspec.Struct, frozen=True):
    """Tensor parallel over `tensor` ranks, pipeline over `pipe` stages of `chunks` parts each.

    `sequence`: what lies between the matrices is divided along the sequence too.
    """

    tensor: int = 1
    pipe: int = 1
    chunks: int = 1
    sequence: bool = False


Recomputed = Literal["none", "selective", "full"]
"""Nothing; scores, softmax and its dropout; all but a layer's input."""


def layer_bytes(shape: Shape, split: Split, recomputed: Recomputed) -> Fraction:
    """Bytes that a layer keeps for its backward pass on one rank (table 2)."""
    sbh, t = shape.s * shape.b * shape.h, split.tensor
    if recomputed == "full":
        return Fraction(2 * sbh, t if split.sequence else 1)
    scores = Fraction(0) if recomputed == "selective" else Fraction(5 * shape.a * shape.s, shape.h)
    if split.sequence:
        return sbh * (34 + scores) / t
    return sbh * (10 + (24 + scores) / t)


def layers_held(shape: Shape, split: Split) -> Fraction:
    """Layers' worth of activations that the first stage holds under 1F1B (section 4.2.3).

    It has a p-th of the layers and p micro-batches of each; interleaving adds (p-1)/(pv) of that.
    """
    more = Fraction(split.pipe - 1, split.pipe * split.chunks) if split.chunks > 1 else Fraction(0)
    return shape.layers * (1 + more)


def activation_bytes(shape: Shape, split: Split, recomputed: Recomputed) -> Fraction:
    """Bytes of activations on a rank of the first stage."""
    return layers_held(shape, split) * layer_bytes(shape, split, recomputed)


def state_bytes(shape: Shape, split: Split) -> Fraction:
    """Bytes of parameters, gradients and optimizer state of the layers on one rank: 12 h^2 each."""
    parameters = 12 * shape.layers * shape.h**2
    return Fraction(STATE_BYTES * parameters, split.tensor * split.pipe)
