from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.extract import attention
from scopenote.extract.attention import BLOCKED_ATTENTION, register_blocked_attention
from transformers import Gemma2Config, Gemma2Model


@settings(max_examples=25, deadline=None)
@given(
    n_sequences=st.integers(1, 4),
    n_tokens=st.integers(1, 40),
    window=st.sampled_from([3, 7, 64]),
    block=st.sampled_from([1, 4, 16]),
    begins=st.lists(st.integers(0, 39), max_size=4),
    seed=st.integers(0, 1000),
)
def test_blocked_attention_gives_what_eager_attention_gives(
    n_sequences: int, n_tokens: int, window: int, block: int, begins: list[int], seed: int
) -> None:
    register_blocked_attention()
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=window,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
    )
    config._attn_implementation = "eager"
    model = Gemma2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    ids = torch.randint(0, 30, (n_sequences, n_tokens))
    # In one of the rows sequences begin also at these places.
    position_ids = torch.arange(n_tokens).repeat(n_sequences, 1)
    for begin in sorted(begins):
        position_ids[-1, begin:] = torch.arange(len(position_ids[-1, begin:]))
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCK_QUERIES", block)
        patch.setattr(attention, "_BLOCK_SCORES", 200)
        eager = model(ids, position_ids=position_ids, use_cache=False)[0]
        model.config._attn_implementation = BLOCKED_ATTENTION
        blocked = model(ids, position_ids=position_ids, use_cache=False)[0]
    torch.testing.assert_close(blocked, eager, rtol=1e-4, atol=1e-5)
