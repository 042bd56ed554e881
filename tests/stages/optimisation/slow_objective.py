"""The objective of a step as a loop over tokens, each term straight from its formula."""

import math

import numpy as np
import torch
from transformers import PreTrainedModel

from schemas.optimisation import OptimisationConfig
from stages.optimisation import Batch


def slow_loss(
    model: PreTrainedModel,
    batch: Batch,
    config: OptimisationConfig,
    *,
    reference: np.ndarray | None = None,
    proximal: np.ndarray | None = None,
) -> torch.Tensor:
    """Adds up the loss of all trajectories, each scored alone."""
    tokens = int(batch.trained.sum())
    total = torch.zeros((), requires_grad=True)
    for index in range(len(batch)):
        start, end = int(batch.offsets[index]), int(batch.offsets[index + 1])
        places = [place for place in range(start, end) if batch.trained[place]]
        scored = _scored(model, batch, index)
        old = batch.logprobs if proximal is None else proximal
        log_ratios = {place: scored[place][0] - float(old[place]) for place in places}
        for place in places:
            logprob, entropy = scored[place]
            weight = {
                "token_mean": 1 / tokens,
                "sequence_mean": 1 / (len(batch) * len(places)),
                "constant_length": 1 / (len(batch) * config.constant_tokens),
            }[config.aggregation]
            if config.loss in ("gspo", "gspo_turn"):
                peers = [
                    float(log_ratios[peer].detach())
                    for peer in places
                    if config.loss == "gspo" or batch.turns[peer] == batch.turns[place]
                ]
                ratio = math.exp(sum(peers) / len(peers)) * (logprob - logprob.detach()).exp()
            else:
                ratio = log_ratios[place].exp()
            loss = _of_token(config, ratio, logprob, float(batch.advantages[place]))
            if proximal is not None:
                w = math.exp(float(proximal[place]) - float(batch.logprobs[place]))
                if config.mismatch == "truncate":
                    w = min(w, config.mismatch_bound)
                elif not 1 / config.mismatch_bound <= w <= config.mismatch_bound:
                    w = 0.0
                loss = loss * w
            if reference is not None:
                log_r = float(reference[place]) - logprob
                loss = (
                    loss
                    + config.reference_kl
                    * {
                        "k1": -log_r,
                        "k2": log_r**2 / 2,
                        "k3": log_r.exp() - 1 - log_r,
                    }[config.reference_kl_estimate]
                )
            total = total + weight * (loss - config.entropy_bonus * entropy)
    return total


def _scored(
    model: PreTrainedModel, batch: Batch, index: int
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Returns log-probability and entropy of the trained tokens of a trajectory by their place."""
    start, end = int(batch.offsets[index]), int(batch.offsets[index + 1])
    ids = torch.from_numpy(batch.token_ids[start:end])
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    scored = {}
    for position in range(1, end - start):
        if batch.trained[start + position]:
            distribution = (logits[position - 1] / float(batch.temperatures[index])).log_softmax(0)
            entropy = -(distribution.exp() * distribution).sum()
            scored[start + position] = (distribution[ids[position]], entropy)
    return scored


def _of_token(
    config: OptimisationConfig, ratio: torch.Tensor, logprob: torch.Tensor, advantage: float
) -> torch.Tensor:
    low, high = 1 - config.clip_low, 1 + config.clip_high
    held = min(max(float(ratio.detach()), low), high)
    if config.loss == "policy_gradient":
        return -advantage * logprob
    if config.loss == "cispo":
        return -held * advantage * logprob
    plain, bounded = ratio * advantage, ratio.new_tensor(held * advantage)
    objective = plain if float(plain.detach()) <= float(bounded) else bounded
    most = config.dual_clip * advantage
    if config.loss == "dual_clip" and advantage < 0 and float(objective.detach()) < most:
        objective = ratio.new_tensor(most)
    return -objective
