"""Log-probabilities of a whole batch under a policy, without gradient."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.optimisation import OptimisationConfig
from stages.optimisation.batches import Batch
from stages.optimisation.forward import pairs_per_token, trained_logprobs
from stages.optimisation.packing import make_pack, split_by_tokens


def score_batch(
    model: PreTrainedModel,
    batch: Batch,
    config: OptimisationConfig,
    *,
    on_part: Callable[[int, int], None] = lambda done, of: None,
) -> NDArray[np.float32]:
    """Returns the log-probability of every trained token, [tokens]; 0 where none is trained.

    Args:
        model: Policy.
        batch: Trajectories.
        config: Numbers to compute with and tokens of a forward pass.
        on_part: Told trajectories done and in all.
    """
    logprobs = np.zeros(len(batch.token_ids), dtype=np.float32)
    pairs = pairs_per_token(model)
    everything = np.arange(len(batch))
    limit, done = config.micro_batch_tokens, 0
    model.eval()
    for part in split_by_tokens(batch, everything, limit, pairs_per_token=pairs):
        pack = make_pack(batch, part, model.device, pairs_per_token=pairs)
        with torch.no_grad():
            logprobs[pack.places] = trained_logprobs(model, pack, config)[0].cpu().numpy()
        done += len(part)
        on_part(done, len(batch))
    return logprobs
