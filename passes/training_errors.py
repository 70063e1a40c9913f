"""What can be wrong with turning a model into a training step, in words.

Codes W0364 and E0501 to E0509.
"""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic, Severity


class NothingTrains(Diagnostic, frozen=True):
    """Every parameter of the model is frozen: a step computes the loss, and changes nothing.

    An adapter's `freeze` may select all parameters if `tune` or `lora` then selects some to train.
    """

    code: ClassVar[str] = "W0364"
    severity: ClassVar[Severity] = "warning"
    title: ClassVar[str] = "all {count} parameters are frozen: steps compute the loss alone"
    label: ClassVar[str] = "nothing is left to train"
    help: ClassVar[tuple[str, ...]] = ("take some out with `tune`, or add updates with `lora`",)

    count: int


class UnevenMicrobatches(Diagnostic, frozen=True):
    """A batch is cut into micro-batches of equal size, so their number must divide its samples."""

    code: ClassVar[str] = "E0501"
    infeasible: ClassVar[bool] = True
    title: ClassVar[str] = "a batch of {batch} samples can't be cut into {count} micro-batches"
    label: ClassVar[str] = "does not divide {batch}"

    batch: int
    count: int

    def setting(self) -> str:
        """Where it was asked for."""
        return "microbatches"

    def helps(self) -> tuple[str, ...]:
        """The numbers that work, nearest first."""
        works = [n for n in range(1, self.batch + 1) if self.batch % n == 0]
        near = sorted(sorted(works, key=lambda n: (abs(n - self.count), n))[:4])
        return (f"`microbatches` can be {', '.join(map(str, near))}",)


class DocumentsMeet(Diagnostic, frozen=True):
    """Documents that share a sample are kept apart in attention under a causal mask, and in nothing
    else that looks at several tokens at once.
    """

    code: ClassVar[str] = "E0507"
    title: ClassVar[str] = "`{path}` {reason}, and the data keeps documents apart"
    label: ClassVar[str] = "tokens of different documents meet here"
    help: ClassVar[tuple[str, ...]] = (
        "use `pack: stream`, or attend with `mask: causal` along the sequence",
    )

    path: str
    reason: str


class DimTaken(Diagnostic, frozen=True):
    """The compiler adds the dim `microbatches` to what a step is fed, so a model can't have it."""

    code: ClassVar[str] = "E0502"
    title: ClassVar[str] = "the model has a dim `{dim}`, which is the compiler's own"
    label: ClassVar[str] = "taken"
    help: ClassVar[tuple[str, ...]] = ("call the model's dim something else",)

    dim: str


class UnevenChunks(Diagnostic, frozen=True):
    """Chunks are equal parts of the sequence, so their number must divide its length."""

    code: ClassVar[str] = "E0503"
    infeasible: ClassVar[bool] = True
    title: ClassVar[str] = "`{dim}` of size {size} can't be cut into {count} chunks"
    label: ClassVar[str] = "does not divide {size}"

    dim: str
    size: int
    count: int
    field: str = "loss_chunks"

    def setting(self) -> str:
        """Where it was asked for."""
        return self.field

    def helps(self) -> tuple[str, ...]:
        """The numbers that work, nearest first."""
        works = [n for n in range(1, self.size + 1) if self.size % n == 0]
        near = sorted(sorted(works, key=lambda n: (abs(n - self.count), n))[:4])
        return (f"`{self.field}` can be {', '.join(map(str, near))}",)


class NothingToChunk(Diagnostic, frozen=True):
    """No layer's backward pass has values wide enough that cutting it would save memory.

    What is cut lies between what mixes positions, such as attention, and has more bytes within it
    than are copied in and out.
    """

    code: ClassVar[str] = "W0505"
    severity: ClassVar[Severity] = "warning"
    title: ClassVar[str] = "`backward_chunks` changes nothing"
    label: ClassVar[str] = "no layer has such values"

    def setting(self) -> str:
        """Where it was asked for."""
        return "backward_chunks"


class NoChunks(Diagnostic, frozen=True):
    """What is to be cut into chunks can't be computed for some positions of the sequence at a time.

    For `loss_chunks` it is what a model does with its logits, for `backward_chunks` what a layer
    does with values that are wider than its input: both must be done for each position alone.
    """

    code: ClassVar[str] = "E0504"
    title: ClassVar[str] = "`{field}` can't be done: {why}"
    label: ClassVar[str] = "asks for chunks"
    help: ClassVar[tuple[str, ...]] = ("leave `{field}` out",)

    why: str
    field: str = "loss_chunks"

    def setting(self) -> str:
        """Where it was asked for."""
        return self.field
