"""Specs that ship equal the models of `transformers` that they are the specs of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle.zoo import parity

pytest.importorskip("transformers")


def test_llama(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        num_hidden_layers=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )
    parity(config, "llama3_8b", tmp_path).require()


def test_gpt2(tmp_path: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=48,
        n_positions=8,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    parity(config, "gpt2", tmp_path).require()
