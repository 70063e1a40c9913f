"""The models of the zoo: a small random configuration for each, of which the spec is the spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from msgspec import Struct

from tests.oracle.zoo import Report, parity

SMALL: Final[Mapping[str, Any]] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Sizes that most configurations call the same."""


def rope(theta: float) -> dict[str, Any]:
    """The setting of plain rotary positions."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def split_at(source: int) -> Callable[[Any, Any], Any]:
    """Scores of an encoder and decoder: of tokens that are read there are none, so zeros."""

    def scores(model: Any, tokens: Any) -> Any:
        read, written = tokens[:, :source], tokens[:, source:]
        found = model(input_ids=read, decoder_input_ids=written).logits
        silent = torch.zeros(*read.shape, found.shape[-1], dtype=found.dtype)
        return torch.cat([silent, found], dim=1)

    return scores


class Entry(Struct, frozen=True):
    """A model: its shipped spec, its configuration's class in `transformers`, what is set there.

    `modeling` is the folder of the reference implementation, `seq` the sequence's length, `sets`
    are sizes that the configuration lacks. `scores` are the model's on tokens, where it takes more.
    """

    spec: str
    kind: str
    modeling: str
    given: Mapping[str, Any]
    seq: int = 8
    sets: Mapping[str, str] = {}
    model_class: str = ""
    scores: Callable[[Any, Any], Any] | None = None

    def config(self) -> Any:
        """The small configuration."""
        import transformers

        return getattr(transformers, self.kind)(**self.given)

    def compared(self, folder: Path, dtype: str = "f64") -> Report:
        """The model compared with its reference, in the folder."""
        import transformers

        kind = getattr(transformers, self.model_class) if self.model_class else None
        return parity(
            self.config(),
            self.spec,
            folder,
            sets=self.sets,
            model_class=kind,
            dtype=dtype,
            seq=self.seq,
            scores=self.scores,
        )


EXPERTS: Final[Mapping[str, Any]] = {**SMALL, "num_experts_per_tok": 2}
"""The same, where each token goes to two experts."""

ZOO: Final = (
    Entry(
        "mixtral",
        "MixtralConfig",
        "mixtral",
        {**EXPERTS, **rope(1e6), "num_local_experts": 4, "head_dim": 4},
    ),
    Entry(
        "qwen3_moe",
        "Qwen3MoeConfig",
        "qwen3_moe",
        {**EXPERTS, **rope(1e6), "num_experts": 4, "moe_intermediate_size": 12, "head_dim": 6}
        | {"norm_topk_prob": True},
    ),
    Entry(
        "gpt_oss",
        "GptOssConfig",
        "gpt_oss",
        {**EXPERTS, "num_local_experts": 4, "head_dim": 8, "sliding_window": 3},
    ),
    Entry(
        "deepseek_v3",
        "DeepseekV3Config",
        "deepseek_v3",
        {**EXPERTS, "num_key_value_heads": 4, "num_hidden_layers": 3, "first_k_dense_replace": 1}
        | {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 4, "topk_group": 2}
        | {"moe_intermediate_size": 12, "q_lora_rank": 12, "kv_lora_rank": 10}
        | {"qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 8}
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            }
        },
    ),
    Entry("llama3_8b", "LlamaConfig", "llama", {**SMALL, **rope(5e5), "rms_norm_eps": 1e-5}),
    Entry(
        "llama3_2",
        "LlamaConfig",
        "llama",
        {**SMALL, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
    ),
    Entry("llama2", "LlamaConfig", "llama", {**SMALL, **rope(1e4), "rms_norm_eps": 1e-5}),
    Entry(
        "mistral",
        "MistralConfig",
        "mistral",
        {**SMALL, **rope(1e4), "rms_norm_eps": 1e-5, "head_dim": 6, "sliding_window": 3},
    ),
    Entry("phi3", "Phi3Config", "phi3", {**SMALL, **rope(1e4), "sliding_window": 3}),
    Entry("qwen2", "Qwen2Config", "qwen2", {**SMALL, **rope(1e6)}),
    Entry("qwen3", "Qwen3Config", "qwen3", {**SMALL, **rope(1e6), "head_dim": 6}),
    Entry("olmo2", "Olmo2Config", "olmo2", {**SMALL, **rope(5e5), "rms_norm_eps": 1e-6}),
    Entry(
        "mamba2",
        "Mamba2Config",
        "mamba2",
        {"vocab_size": 40, "hidden_size": 12, "num_heads": 6, "head_dim": 4, "n_groups": 2}
        | {"state_size": 5, "num_hidden_layers": 2, "chunk_size": 4}
        | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        seq=9,
    ),
    Entry(
        "qwen3_next",
        "Qwen3NextConfig",
        "qwen3_next",
        {**EXPERTS, "head_dim": 8, "num_hidden_layers": 6, "num_experts": 4}
        | {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 6}
        | {"linear_value_head_dim": 4, "moe_intermediate_size": 12}
        | {"shared_expert_intermediate_size": 10}
        | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7}
            | {"partial_rotary_factor": 0.25}
        },
        seq=9,
    ),
    Entry(
        "gemma2",
        "Gemma2Config",
        "gemma2",
        {**SMALL, **rope(1e4), "head_dim": 6, "sliding_window": 3, "query_pre_attn_scalar": 9}
        | {"num_hidden_layers": 3},
    ),
    Entry(
        "gemma3",
        "Gemma3TextConfig",
        "gemma3",
        {**SMALL, "head_dim": 6, "sliding_window": 3, "query_pre_attn_scalar": 9}
        | {"num_hidden_layers": 7},
    ),
    Entry(
        "starcoder2",
        "Starcoder2Config",
        "starcoder2",
        {**SMALL, **rope(1e6), "sliding_window": 3},
    ),
    Entry(
        "t5",
        "T5Config",
        "t5",
        {"vocab_size": 40, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 4}
        | {"num_decoder_layers": 3, "dropout_rate": 0.0, "relative_attention_num_buckets": 8}
        | {"relative_attention_max_distance": 5, "decoder_start_token_id": 0}
        | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        seq=14,
        sets={"dims.source": "8"},
        model_class="T5ForConditionalGeneration",
        scores=split_at(8),
    ),
    # Its GELU has a constant of eight digits there, which is most of the difference in fp64.
    Entry(
        "bloom",
        "BloomConfig",
        "bloom",
        {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4}
        | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    ),
    Entry(
        "gpt_neox",
        "GPTNeoXConfig",
        "gpt_neox",
        {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
        | {"hidden_size": 32}
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.25,
            }
        },
    ),
    Entry(
        "gpt2",
        "GPT2Config",
        "gpt2",
        {"vocab_size": 40, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 4}
        | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        | {"bos_token_id": None, "eos_token_id": None},
    ),
)
