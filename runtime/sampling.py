"""Text from the trained model: one token after the other from the `predict` entry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fllmc.ir import philox
from fllmc.ir.plan import Plan
from fllmc.ir.types import Type
from fllmc.runtime.communicator import Communicator
from fllmc.runtime.data.tokenizers import Tokenizer
from fllmc.runtime.executor import Executor
from fllmc.runtime.feeding import tokens_type

Logits = npt.NDArray[np.float64]
ENTRY = "predict"


def sample_text(
    plan: Plan, executor: Executor, tokenizer: Tokenizer, comm: Communicator | None = None
) -> str:
    """The prompt and what the model says after it. All ranks call this, and get the same text.

    The draw of token `n` depends on the seed and `n` alone. A text longer than `seq` is continued
    from its last `seq` tokens.
    """
    wish = plan.train.sample
    tokens = tokenizer.encode(wish.prompt.encode()).astype(np.int64).tolist()
    begun = tokens or tokenizer.encode(b"\n").astype(np.int64).tolist()[:1] or [0]
    tokens = list(begun)
    for _ in range(wish.tokens):
        logits = next_logits(plan, executor, tokens, comm)[: tokenizer.vocab]
        token = choose(logits, wish.temperature, plan.train.seed, len(tokens))
        # Equal on all ranks up to the last bit of a logit; one rank's choice makes it certain.
        tokens.append(comm.gather(token)[0] if comm else token)
    return tokenizer.decode(tokens if wish.prompt else tokens[len(begun) :])


def choose(logits: Logits, temperature: float, seed: int, place: int) -> int:
    """A token drawn from softmax(logits / temperature); the likeliest where that is 0."""
    if temperature <= 0:
        return int(np.argmax(logits))
    weights = np.exp((logits - logits.max()) / temperature)
    heights = np.cumsum(weights)
    word, other, _, _ = philox.words(philox.stream_key("sample", seed), np.array([place]))
    drawn = float(philox.unit53(word, other, philox.NUMPY)[0]) * heights[-1]
    return int(min(np.searchsorted(heights, drawn, side="right"), len(heights) - 1))


def next_logits(
    plan: Plan, executor: Executor, tokens: Sequence[int], comm: Communicator | None
) -> Logits:
    """The logits `[vocab]` of the token behind these, on every rank."""
    function = executor.plan.program.function(ENTRY)
    data = {i.name.rpartition(".")[2]: i.name for i in function.inputs if i.role == "data"}
    kind = tokens_type(plan, ENTRY)
    seq = plan.program.sizes.size(kind.dims[-1].name)
    window = list(tokens)[-seq:]
    place = len(window) - 1
    whole = torch.zeros(seq, dtype=torch.int64)
    whole[: len(window)] = torch.tensor(window)
    if "tokens" in data:
        target = executor.tensor(data["tokens"])
        # Every row of the batch is the same text, so any rank's first row will do.
        target.copy_(_own(whole, kind, plan, executor).expand(target.shape))
    # The text is one document.
    places = {"starts": torch.zeros_like(whole), "positions": torch.arange(seq)}
    for field, column in places.items():
        if field in data:
            target = executor.tensor(data[field])
            target.copy_(_own(column, kind, plan, executor).expand(target.shape))
    if "position" in data:
        executor.tensor(data["position"]).fill_(place)
    executor.run(ENTRY, seed=plan.train.seed)
    result = function.types[function.results[function.outputs.index("logits")]]
    return _gathered(executor.tensor("logits"), result, comm)


def _own(whole: torch.Tensor, kind: Type, plan: Plan, executor: Executor) -> torch.Tensor:
    """This rank's part of the tokens."""
    held = plan.program.sizes.stretches(kind.dims[-1], executor.coordinates)
    return torch.cat([whole[stretch.start : stretch.stop] for stretch in held])


def _gathered(local: torch.Tensor, kind: Type, comm: Communicator | None) -> Logits:
    """The first row, from `[batch, vocab]` that may be divided and partial, on every rank."""
    row = local[0].contiguous().clone()
    if comm and kind.partial:
        comm.all_reduce(kind.partial, row, kind.combine).wait()
    axes = kind.dims[-1].axes
    if comm and axes:
        out = row.new_empty(row.numel() * comm.sizes[axes])
        comm.all_gather(axes, row, out, 0, None).wait()
        row = out
    return row.double().cpu().numpy()
