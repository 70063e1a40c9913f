"""The fields of sections as text, one for each setting; empty where nothing could be written."""

from __future__ import annotations

import re

from fllmc.frontend.sections.train import Choice, TrainSection
from fllmc.ir.settings import (
    Chat,
    Data,
    FillMiddle,
    Loss,
    Pipeline,
    Precision,
    Sample,
    Schedule,
    Spec,
)

Fields = dict[str, str]


def quoted(text: str) -> str:
    """A text in quotes."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def number(value: float) -> str:
    """A number that is read back as the same, without more digits than that takes."""
    if value == int(value) and abs(value) < 2**53:
        return str(int(value))
    return re.sub(r"e([+-])0+", r"e\1", repr(value))


def data_fields(data: Data, part: bool) -> Fields:
    """A data section's fields; a part of a mixture leaves some to the whole, and it to them."""
    fields: Fields = {}
    if not part:
        fields["tokenizer"] = tokenizer(data.tokenizer)
    fields["seed"] = str(data.seed)
    if data.parts:
        return fields
    return fields | {
        "holdout": number(data.holdout),
        "pack": data.pack,
        "end": mark(data.end),
        "stored": data.stored,
        "columns": f"[{', '.join(data.columns)}]",
        "chat": chat(data.chat),
        "fim": middle(data.fim),
    }


def tokenizer(text: str) -> str:
    """A tokenizer as a spec writes it."""
    if text in ("bytes", "none"):
        return text
    kind, _, size = text.partition(":")
    return f"bpe({size})" if kind == "bpe" else quoted(text)


def mark(token: int | str | None) -> str:
    """A token by number or as text."""
    return "" if token is None else quoted(token) if isinstance(token, str) else str(token)


def chat(turns: Chat) -> str:
    """How conversations are written."""
    texts = ", ".join(f"{key}: {quoted(getattr(turns, key))}" for key in ("begin", "open", "close"))
    return f"turns({texts}, learn: [{', '.join(turns.learn)}])"


def middle(fim: FillMiddle | None) -> str:
    """How documents are told out of order."""
    if fim is None:
        return ""
    marks = ", ".join(f"{key}: {mark(getattr(fim, key))}" for key in ("prefix", "suffix", "middle"))
    return f"fim(rate: {number(fim.rate)}, spm: {number(fim.spm)}, {marks})"


def train_fields(spec: Spec, section: TrainSection) -> Fields:
    """The fields of a `train` section."""
    train = spec.train
    fields = {
        "data": spec.data.name,
        "loss": loss(train.loss),
        "optimizer": call(section.optimizer),
        "rate": call(section.rate),
        "steps": str(train.steps),
        "clip": number(train.clip),
        "precision": precision(train.precision),
        "seed": str(train.seed),
        "evaluate_every": str(train.evaluate_every),
        "checkpoint_every": str(train.checkpoint_every),
        "log_every": str(train.log_every),
        "sample": sample(train.sample),
        "init": f"checkpoint({quoted(train.init)})" if train.init else "",
    }
    if section.optimizer and "weight_decay" in section.optimizer.arguments:
        fields["no_decay"] = "[]"
    return fields


def loss(given: Loss) -> str:
    """The loss with its arguments."""
    mask = f", mask: {given.mask}" if given.mask else ""
    if given.kind != "cross_entropy":
        numbers = [f"{name}: {number(value)}" for name, value in given.numbers]
        numbers += [f"mask: {given.mask}"] if given.mask else []
        return f"{given.kind}({', '.join(numbers)})"
    return f"{given.kind}(z_loss: {number(given.z_loss)}{mask})"


def call(choice: Choice | None) -> str:
    """An optimizer or a rate with all its arguments."""
    if choice is None:
        return ""
    shown: list[str] = []
    for parameter in choice.rule.parameters:
        names = parameter.parts or (parameter.name,)
        values = [number(choice.arguments[name]) for name in names]
        if parameter.truth:
            values = ["true" if choice.arguments[parameter.name] else "false"]
        text = f"({', '.join(values)})" if parameter.parts else values[0]
        shown.append(f"{parameter.name}: {text}")
    return f"{choice.rule.name}({', '.join(shown)})"


def precision(policy: Precision) -> str:
    """Dtypes of stored parameters, of computation and of sums."""
    return f"policy(params: {policy.params}, compute: {policy.compute}, reduce: {policy.reduce})"


def sample(wish: Sample) -> str:
    """Text to generate."""
    prompt, warmth = quoted(wish.prompt), number(wish.temperature)
    return f"text(prompt: {prompt}, tokens: {wish.tokens}, temperature: {warmth})"


def schedule_fields(schedule: Schedule) -> Fields:
    """The fields of a schedule; its directives are all written anyway."""
    memory = {"budget": schedule.budget_gib or None, "host": schedule.host_gib}
    sizes = {
        f"{key}_gib" if size is not None else key: "" if size is None else number(size)
        for key, size in memory.items()
    }
    written = {key for key, _ in schedule.places}
    return {
        "microbatches": str(schedule.microbatches),
        "pipeline": pipeline(schedule.pipeline),
        "context": schedule.context,
        "expert_rows": schedule.expert_rows,
        **{key: text for key, text in sizes.items() if key not in written},
        "loss_chunks": str(schedule.loss_chunks),
        "backward_chunks": str(schedule.backward_chunks),
        "overlap": schedule.overlap,
    }


def pipeline(order: Pipeline | None) -> str:
    """The order of pipeline stages; of 1F1B there is nothing more to say."""
    if order is None or order.kind == "1f1b":
        return "" if order is None else order.kind
    exact = "true" if order.exact else "false"
    memory = number(order.memory)
    return f"{order.kind}(chunks: {order.chunks}, memory: {memory}, exact: {exact})"
