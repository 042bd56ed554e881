"""Random ragged batches and hand-made credit for the tests of optimisation."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel

from schemas.optimisation import OptimisationConfig
from schemas.tables import Advantages
from stages.optimisation import Batch
from stages.optimisation.scoring import score_batch
from tests.stages.rollout.rollout_policies import VOCABULARY


def advantages_of(values: Mapping[tuple[str, int, int], float | None]) -> dy.DataFrame[Advantages]:
    """Returns credit from key to advantage; null stands for an excluded turn."""
    if not values:
        return Advantages.create_empty()
    frame = pl.DataFrame(
        [
            {
                "task_id": key[0],
                "sample_index": key[1],
                "turn_index": key[2],
                **dict.fromkeys(("reward", "return", "baseline", "scale")),
                **dict.fromkeys(("turn_advantage", "turn_weight", "outcomes_equal")),
                "advantage": advantage,
                "estimator": "test",
                "gamma": 1.0,
                "normalise": "none",
                "excluded": None,
            }
            for key, advantage in values.items()
        ],
        infer_schema_length=None,
    )
    # Not validated: the schema would refuse first what the stage must refuse by itself.
    return Advantages.cast(frame)


def ragged_batch(
    lengths: list[int], *, seed: int = 0, temperature: float = 1.0, share: float = 0.5
) -> Batch:
    """Draws trajectories of random tokens; at least one token of each is trained."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    trained = random.random(total) < share
    trained[offsets[1:] - 1] = True
    trained[offsets[:-1]] = False
    token_ids = random.integers(1, VOCABULARY, size=total)
    turns, turn_keys = turns_of_runs(trained, offsets)
    return Batch(
        token_ids=token_ids,
        trained=trained,
        turns=turns,
        turn_keys=turn_keys,
        logprobs=np.where(trained, random.normal(-3, 1, size=total), 0).astype(np.float32),
        advantages=np.where(trained, random.normal(size=total), 0).astype(np.float32),
        temperatures=np.full(len(lengths), temperature, dtype=np.float32),
        top_ps=np.ones(len(lengths), dtype=np.float32),
        top_ks=np.zeros(len(lengths), dtype=np.int64),
        prompt_lengths=np.ones(len(lengths), dtype=np.int64),
        offsets=offsets,
    )


def turns_of_runs(trained: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, pl.DataFrame]:
    """Takes trained tokens next to each other for a turn; returns `turns` and `turn_keys`."""
    turns = np.full(len(trained), -1)
    keys = []
    for index, (start, end) in enumerate(itertools.pairwise(offsets)):
        number = -1
        for place in range(start, end):
            if trained[place]:
                if place == start or not trained[place - 1]:
                    number += 1
                    keys.append((f"g{index // 2}", index % 2, number))
                turns[place] = len(keys) - 1
    schema = {"task_id": pl.String, "sample_index": pl.Int32, "turn_index": pl.Int32}
    return turns, pl.DataFrame(keys, schema=schema, orient="row")


def grouped_batch(rests: list[int], *, prompt: int, samples: int, seed: int = 0) -> Batch:
    """Draws groups whose trajectories share a prompt, one length of the rest for each group."""
    batch = ragged_batch([prompt + rest for rest in rests for _ in range(samples)], seed=seed)
    tokens, trained = batch.token_ids.copy(), batch.trained.copy()
    for index in range(len(batch)):
        places = slice(batch.offsets[index], batch.offsets[index] + prompt)
        first = batch.offsets[index - index % samples]
        tokens[places] = tokens[first : first + prompt]
        trained[places] = False
    turns, turn_keys = turns_of_runs(trained, batch.offsets)
    return replaced(
        batch,
        token_ids=tokens,
        trained=trained,
        turns=turns,
        turn_keys=turn_keys,
        logprobs=np.where(trained, batch.logprobs, np.float32(0)),
        advantages=np.where(trained, batch.advantages, np.float32(0)),
        prompt_lengths=np.full(len(batch), prompt, dtype=np.int64),
    )


def with_own_logprobs(model: PreTrainedModel, batch: Batch) -> Batch:
    """Returns the batch as if the model itself had sampled it."""
    alone = OptimisationConfig(micro_batch_tokens=1)
    return replaced(batch, logprobs=score_batch(model, batch, alone))


def replaced(batch: Batch, **values: Any) -> Batch:
    return dataclasses.replace(batch, **values)


def gradients(model: PreTrainedModel) -> torch.Tensor:
    """Returns all gradients end to end."""
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in _of(model)]
    )


def weights(model: PreTrainedModel) -> torch.Tensor:
    """Returns all weights end to end."""
    return torch.cat([p.detach().flatten() for p in _of(model)])


def _of(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return list(model.parameters())
