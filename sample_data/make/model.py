"""The untrained tiny model, started where copying is easy to learn.

Most tasks copy from the prompt.  A transformer copies with two kinds of attention heads: one that
looks at the previous token, and one that looks for equal tokens.  From a usual random start the
first thousands of steps go by before either appears, longer than the whole training run here; so
both are put into the start ("mimetic" initialisation) and left to training like all else.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from sample_data.make.tokenizer import MAX_TOKENS

HEADS = 5
HEAD_SIZE = 32
ROPE_THETA = 10_000.0

#: Spread of the query weights, which the key weights start as a copy of.  Larger than usual, so
#: that the score of equal tokens stands out from chance.
EQUAL_TOKENS_SPREAD = 0.06
#: In this many first layers, one head starts by looking at the previous token.
PREVIOUS_TOKEN_LAYERS = 2
PREVIOUS_TOKEN_STRENGTH = 5.0
PREVIOUS_TOKEN_SPREAD = 0.01


def _start_previous_token_head(attention: LlamaAttention) -> None:
    """Give a layer's first head biases whose score is highest one position back.

    Rotary embedding turns the pair (i, i + half) by position * rate[i].  A query turned back by
    one step therefore agrees best with the key one position before it, in every pair.
    """
    half = HEAD_SIZE // 2
    rates = ROPE_THETA ** -(torch.arange(half) / half)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[:HEAD_SIZE].normal_(0, PREVIOUS_TOKEN_SPREAD)
    attention.k_proj.bias[:half] = PREVIOUS_TOKEN_STRENGTH
    attention.q_proj.bias[:half] = PREVIOUS_TOKEN_STRENGTH * torch.cos(rates)
    attention.q_proj.bias[half:HEAD_SIZE] = -PREVIOUS_TOKEN_STRENGTH * torch.sin(rates)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model for a tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = False
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            attention.q_proj.weight.normal_(0, EQUAL_TOKENS_SPREAD)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            if index < PREVIOUS_TOKEN_LAYERS:
                _start_previous_token_head(attention)
    return model
