"""Random ragged batches and hand-made credit for the tests of optimisation."""

import dataclasses
from collections.abc import Mapping

import dataframely as dy
import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel

from schemas.config import OptimisationConfig
from schemas.tables import Advantages
from stages.optimisation import Batch
from stages.optimisation.forward import trained_logprobs
from stages.optimisation.packing import make_pack
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
    return Batch(
        token_ids=random.integers(1, VOCABULARY, size=total),
        trained=trained,
        logprobs=np.where(trained, random.normal(-3, 1, size=total), 0).astype(np.float32),
        advantages=np.where(trained, random.normal(size=total), 0).astype(np.float32),
        temperatures=np.full(len(lengths), temperature, dtype=np.float32),
        top_ps=np.ones(len(lengths), dtype=np.float32),
        top_ks=np.zeros(len(lengths), dtype=np.int64),
        prompt_lengths=np.ones(len(lengths), dtype=np.int64),
        offsets=offsets,
    )


def grouped_batch(rests: list[int], *, prompt: int, samples: int, seed: int = 0) -> Batch:
    """Draws groups whose trajectories share a prompt, one length of the rest for each group."""
    batch = ragged_batch([prompt + rest for rest in rests for _ in range(samples)], seed=seed)
    tokens, trained = batch.token_ids.copy(), batch.trained.copy()
    for index in range(len(batch)):
        places = slice(batch.offsets[index], batch.offsets[index] + prompt)
        first = batch.offsets[index - index % samples]
        tokens[places] = tokens[first : first + prompt]
        trained[places] = False
    return replaced(
        batch,
        token_ids=tokens,
        trained=trained,
        logprobs=np.where(trained, batch.logprobs, np.float32(0)),
        advantages=np.where(trained, batch.advantages, np.float32(0)),
        prompt_lengths=np.full(len(batch), prompt, dtype=np.int64),
    )


def with_own_logprobs(model: PreTrainedModel, batch: Batch) -> Batch:
    """Returns the batch as if the model itself had sampled it."""
    logprobs = batch.logprobs.copy()
    for index in range(len(batch)):
        rows = slice(batch.offsets[index], batch.offsets[index + 1])
        pack = make_pack(batch, np.array([index]), torch.device("cpu"), pairs_per_token=0)
        scored, _ = trained_logprobs(model, pack, OptimisationConfig())
        values = np.zeros(rows.stop - rows.start, dtype=np.float32)
        values[batch.trained[rows]] = scored.detach().numpy()
        logprobs[rows] = values
    return replaced(batch, logprobs=logprobs)


def replaced(batch: Batch, **values: np.ndarray) -> Batch:
    return dataclasses.replace(batch, **values)


def slow_loss(model: PreTrainedModel, batch: Batch, config: OptimisationConfig) -> torch.Tensor:
    """Adds the clipped loss up token by token, each trajectory alone, straight from its formula."""
    total, count = torch.zeros((), requires_grad=True), 0
    for index in range(len(batch)):
        start, end = int(batch.offsets[index]), int(batch.offsets[index + 1])
        ids = torch.from_numpy(batch.token_ids[start:end])
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        for position in range(1, end - start):
            if not batch.trained[start + position]:
                continue
            scores = logits[position - 1] / float(batch.temperatures[index])
            logprob = scores[ids[position]] - scores.logsumexp(0)
            ratio = (logprob - float(batch.logprobs[start + position])).exp()
            advantage = float(batch.advantages[start + position])
            bounded = min(max(float(ratio.detach()), 1 - config.clip_low), 1 + config.clip_high)
            unclipped, clipped = ratio * advantage, torch.tensor(bounded * advantage)
            total = total - (unclipped if float(unclipped.detach()) <= float(clipped) else clipped)
            count += 1
    return total / count


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
