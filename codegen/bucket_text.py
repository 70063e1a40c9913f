"""A bucketed op on a CPU: a fused group over flat views of whole buckets."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.codegen.buckets import result_lists
from fllmc.codegen.function_text import FunctionText
from fllmc.codegen.fused_text import FusedText
from fllmc.ir.ops import Bucketed
from fllmc.ir.program import Op


class BucketText(FusedText):
    """Writes one bucketed op into the text of the function that runs it."""

    def __init__(self, text: FunctionText, op: Op, at: int):
        assert isinstance(op.attrs, Bucketed)
        super().__init__(text, op, at)
        self.lists = op.attrs.listed(op.operands)
        self.scalars = op.attrs.scalars(op.operands)

    def flat(self, values: Sequence[int]) -> str:
        """One view of tensors that adjoin."""
        names = ", ".join(self.text.tensor(value) for value in values)
        return self.text.view(f"rt.adjoining(({names},))")

    def given(self, number: int) -> str:
        if number < len(self.lists):
            return self.flat(self.lists[number])
        return self.text.tensor(self.scalars[number - len(self.lists)])

    def made(self, number: int) -> str:
        values = result_lists(self.op, self.body)[number]
        listed = bool(self.body.types[self.body.results[number]].dims)
        return self.flat(values) if listed else self.text.tensor(values[0])

    def number(self, number: int) -> str:
        return self.text.number(self.scalars[number - len(self.lists)])
