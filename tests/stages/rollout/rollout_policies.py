"""Small policies and hand-made frames for the tests of sampling and optimisation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import dataframely as dy
import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from schemas.config_text import parse_config
from schemas.tables import Executions, Prompts, Turns
from stages.cold_start.start import start_policy
from stages.dialogue.tags import TagDialogue
from stages.rollout.engine import Requests

VOCABULARY = 40
LETTERS = "abcdefghijklmnopqrstuvwxyz<>/. ABCDEFGHI"
CONTEXT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy that calls the tool now and then."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dialogue: TagDialogue


@lru_cache(maxsize=1)
def started_policy() -> Policy:
    """Trains for about two seconds: enough for calls, answers and endless turns to occur."""
    config = parse_config(
        """
        problems.levels = [1]
        policy = {hidden_size = 48, layers = 2, feed_forward_size = 96, vocabulary_size = 300}
        cold_start = {steps = 80, demonstrations = 640, batch_size = 8, warmup_steps = 5}
        """
    )
    started = start_policy(config, given=None, seed=0)
    return Policy(
        model=started.model,
        tokenizer=started.tokenizer,
        dialogue=TagDialogue(started.tokenizer),
    )


def random_model(
    kind: str, *, attention: str = "sdpa", window: int | None = None
) -> PreTrainedModel:
    """Makes a model whose weights are large enough for sharp distributions."""
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    elif kind == "llama":
        config = LlamaConfig(**common, num_key_value_heads=2)
        model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    elif kind == "mistral":
        config = MistralConfig(**common, num_key_value_heads=2, sliding_window=window)
        model = MistralForCausalLM._from_config(config, attn_implementation=attention)
    else:
        config = Qwen3Config(**common, num_key_value_heads=4, head_dim=8)
        model = Qwen3ForCausalLM._from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@lru_cache(maxsize=1)
def letters_tokenizer() -> PreTrainedTokenizerBase:
    """Returns a tokenizer whose every token is a letter, for models of random weights."""
    vocabulary = {letter: index for index, letter in enumerate(LETTERS[:VOCABULARY])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def ragged_contexts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, VOCABULARY, size=length).tolist() for length in lengths]


def requests(
    contexts: list[list[int]],
    *,
    seeds: Sequence[int] | None = None,
    limits: int | Sequence[int] = 20,
    stop_ids: tuple[int, ...] = (0, 1),
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop_strings: tuple[str, ...] = (),
) -> Requests:
    rows = len(contexts)
    return Requests(
        contexts=contexts,
        seeds=np.array(range(rows) if seeds is None else seeds, dtype=np.int64),
        max_new_tokens=np.broadcast_to(np.array(limits, dtype=np.int64), rows).copy(),
        stop_ids=stop_ids,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop_strings=stop_strings,
    )


def recomputed_logprobs(
    model: PreTrainedModel,
    context: list[int],
    tokens: list[int],
    temperature: float,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
) -> torch.Tensor:
    """Scores one continuation by a plain forward pass, without cache, mask or batch."""
    if not tokens:
        return torch.zeros(0)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + tokens]), use_cache=False).logits[0]
    rows = (logits[len(context) - 1 : -1].double() / (temperature or 1)).softmax(-1)
    probabilities = [
        cut_slowly(row, top_p if temperature else 1.0, top_k if temperature else 0)[token]
        for row, token in zip(rows.tolist(), tokens, strict=True)
    ]
    return torch.tensor(probabilities, dtype=torch.float64).log().float()


def cut_slowly(probabilities: list[float], top_p: float, top_k: int) -> list[float]:
    """Keeps the likeliest tokens one by one, as the definitions of top-k and top-p say."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    order = order[: top_k or None]
    mass = sum(probabilities[token] for token in order)
    kept: list[int] = []
    share = 0.0
    for token in order:
        if kept and share >= top_p:
            break
        kept.append(token)
        share += probabilities[token] / mass
    total = sum(probabilities[token] for token in kept)
    chosen = set(kept)
    return [p / total if token in chosen else 0.0 for token, p in enumerate(probabilities)]


def prompts_of(token_ids: Mapping[str, list[int]]) -> dy.DataFrame[Prompts]:
    rows = [
        {
            "task_id": task,
            "problem": "?",
            "answer": "1",
            "source": "test",
            "level": None,
            "prompt_token_ids": ids,
            "round": 0,
        }
        for task, ids in token_ids.items()
    ]
    return Prompts.validate(pl.DataFrame(rows), cast=True)


def turns_of(
    rows: Mapping[tuple[str, int, int], tuple[list[int], list[float]]],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    finish_reasons: Mapping[tuple[str, int, int], str] | None = None,
) -> dy.DataFrame[Turns]:
    """Returns turns from key to tokens and log-probabilities; calls unless told otherwise."""
    reasons = finish_reasons or {}
    frame = pl.DataFrame(
        [
            {
                "task_id": key[0],
                "sample_index": key[1],
                "turn_index": key[2],
                "text": "",
                "token_ids": tokens,
                "logprobs": logprobs,
                "finish_reason": reasons.get(key, "code"),
                "reasoning": "",
                "code": "pass",
                "answer": None,
                "parse_error": None,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "policy_version": 0,
                "seed": 0,
            }
            for key, (tokens, logprobs) in rows.items()
        ],
        schema_overrides={"token_ids": pl.List(pl.Int32), "logprobs": pl.List(pl.Float32)},
    )
    return Turns.validate(frame, cast=True)


def executions_of(
    observations: Mapping[tuple[str, int, int], list[int]],
    *,
    statuses: Mapping[tuple[str, int, int], str] | None = None,
) -> dy.DataFrame[Executions]:
    """Returns one execution a key, from key to observation tokens; `ok` unless told otherwise."""
    if not observations:
        return Executions.create_empty()
    known = statuses or {}
    frame = pl.DataFrame(
        [
            {
                "task_id": key[0],
                "sample_index": key[1],
                "turn_index": key[2],
                "status": known.get(key, "ok"),
                "stdout": "",
                "stderr": "",
                "exit_code": 0,
                "wall_s": 0.0,
                "cpu_s": 0.0,
                "observation": "",
                "observation_token_ids": ids,
            }
            for key, ids in observations.items()
        ],
        schema_overrides={"observation_token_ids": pl.List(pl.Int32)},
    )
    return Executions.validate(frame, cast=True)
