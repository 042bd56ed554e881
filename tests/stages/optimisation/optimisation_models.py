"""Tiny models of several architectures, with what sets each apart switched on."""

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.stages.rollout.rollout_policies import CONTEXT, VOCABULARY

WINDOW = 5
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**_SIZES)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**_SIZES)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**_SIZES, head_dim=8)),
    # Sees a window of the sequence only.
    "mistral": (MistralForCausalLM, MistralConfig(**_SIZES, sliding_window=WINDOW)),
    # Caps of attention and of logits, and a window in every other layer.
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **_SIZES,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=WINDOW,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    # Logits divided, logits multiplied, logits with a bias.
    "granite": (GraniteForCausalLM, GraniteConfig(**_SIZES, logits_scaling=4.0)),
    "cohere": (CohereForCausalLM, CohereConfig(**_SIZES, logit_scale=0.3)),
    "phi": (PhiForCausalLM, PhiConfig(**_SIZES)),
    # Learned positions, dropout.
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT),
    ),
    # Tokens are sent to some of several experts.
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **_SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        ),
    ),
    # A state in place of attention: cannot be packed.
    "mamba": (
        MambaForCausalLM,
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
    ),
}
ARCHITECTURES = tuple(_MODELS)
ATTENDING = tuple(name for name in ARCHITECTURES if name != "mamba")


def tiny_model(architecture: str) -> PreTrainedModel:
    """Makes a model in double precision, whose weights are large enough for sharp distributions."""
    kind, config = _MODELS[architecture]
    torch.manual_seed(0)
    # Gemma caps scores in this way of attention only; the other way of experts knows no float64.
    ways = {
        "gemma2": {"attn_implementation": "eager"},
        "qwen3_moe": {"experts_implementation": "eager"},
    }
    model = kind._from_config(config, **ways.get(architecture, {}))
    for name, parameter in model.named_parameters():
        if (parameter.ndim == 2 and architecture != "mamba") or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()
