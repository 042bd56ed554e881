"""The embedded engine beside transformers.generate(), on the same requests of one model.

generate() keeps a row that has ended in its batch until all have, knows no limits of single rows,
and returns no log-probabilities.
"""

import dataclasses
import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.printing import Figures
from stages.prompts import embedded_problems
from stages.rollout.engine import Requests
from stages.rollout.transformers_engine import TransformersEngine

STOP = "\n"
"""Rows of a mix end with a token that holds this: after a paragraph."""


def add_ratio(
    name: str,
    engine: TransformersEngine,
    model: PreTrainedModel,
    requests: Sequence[Requests],
    figures: Figures,
) -> None:
    """Adds tokens a second of both, one after the other, and their ratio."""
    started = time.perf_counter()
    sampled = sum(len(row) for each in requests for row in engine.generate(each).token_ids)
    own = sampled / (time.perf_counter() - started)
    started = time.perf_counter()
    sampled = sum(generate_with_transformers(model, each) for each in requests)
    theirs = sampled / (time.perf_counter() - started)
    figures.add(
        **{
            f"{name}_engine_tokens_per_s": own,
            f"{name}_transformers_generate_tokens_per_s": theirs,
            f"{name}_engine_to_transformers_ratio": own / theirs,
        }
    )


def generate_with_transformers(model: PreTrainedModel, requests: Requests) -> int:
    """Answers the requests with transformers.generate(); returns the number of tokens."""
    return int(generated_rows(model, requests)[1].sum())


def generated_rows(model: PreTrainedModel, requests: Requests) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers the requests with transformers.generate().

    Returns:
        Tokens of each row, and which of them were sampled before or as its end, [rows, tokens].
    """
    width = max(len(context) for context in requests.contexts)
    ids = torch.zeros((len(requests.contexts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, context in enumerate(requests.contexts):
        ids[row, width - len(context) :] = torch.tensor(context)
        mask[row, width - len(context) :] = 1
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=requests.temperature,
        top_p=requests.top_p,
        top_k=requests.top_k,
        max_new_tokens=int(requests.max_new_tokens.max()),
        eos_token_id=list(requests.stop_ids) or [-1],  # null would be the model's own
        pad_token_id=0,
    )[:, width:]
    stopped = torch.isin(output, torch.tensor(requests.stop_ids)).long()
    return output, stopped.cumsum(1) - stopped == 0


def equal_lengths(requests: Requests) -> Requests:
    """Returns the requests with the first tokens of their contexts, and without an end."""
    length = min(map(len, requests.contexts))
    return dataclasses.replace(
        requests, contexts=[context[:length] for context in requests.contexts], stop_ids=()
    )


def measure_pretrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    figures: Figures,
    *,
    rows: int,
    tokens: int,
    repeats: int,
) -> None:
    """Adds what both reach on a pretrained model; a first turn of each is not counted.

    Once on contexts of one length, no two alike, whose rows all run to the limit; once on groups of
    four rows, whose contexts have 32 to 256 tokens and whose rows end with a paragraph.
    """
    engine = TransformersEngine(model, tokenizer, policy_version=0)
    mixes = {
        "equal_lengths": made_requests(tokenizer, [96] * rows, tokens, stops=False),
        "mixed": made_requests(
            tokenizer, np.repeat(np.linspace(32, 256, -(-rows // 4), dtype=int), 4)[:rows], tokens
        ),
    }
    for requests in mixes.values():
        add_ratio("warm_up", engine, model, [requests], Figures())
    for _, (name, requests) in itertools.product(range(repeats), mixes.items()):
        add_ratio(name, engine, model, [requests], figures)


def made_requests(
    tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int], tokens: int, *, stops: bool = True
) -> Requests:
    """Cuts contexts of these lengths out of problems; equal lengths that follow are one context,
    if rows may stop."""
    problems = embedded_problems(200, split="train", levels=(1, 2, 3), seed=0)
    text = tokenizer("\n".join(problems["problem"]), add_special_tokens=False)["input_ids"]
    begins = np.cumsum([0, *lengths[:-1]])
    if stops:
        begins = np.zeros(len(lengths), dtype=int)
    ends = [
        index for index in range(len(tokenizer)) if stops and STOP in str(tokenizer.decode([index]))
    ]
    return Requests(
        contexts=[
            text[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)
        ],
        seeds=np.arange(len(lengths), dtype=np.int64),
        max_new_tokens=np.full(len(lengths), tokens, dtype=np.int64),
        stop_ids=tuple(ends),
    )
