"""Log-probabilities of a whole batch under a policy, without gradient."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.optimisation import OptimisationConfig
from stages.optimisation.batches import Batch
from stages.optimisation.devices import ONE_DEVICE, Devices
from stages.optimisation.forward import pairs_per_token
from stages.optimisation.packing import make_pack


def score_batch(
    model: PreTrainedModel,
    batch: Batch,
    config: OptimisationConfig,
    devices: Devices = ONE_DEVICE,
    *,
    on_part: Callable[[int, int], None] = lambda done, of: None,
) -> NDArray[np.float32]:
    """Returns the log-probability of every trained token, [tokens]; 0 where none is trained.

    Args:
        model: Policy.
        batch: Trajectories.
        config: Numbers to compute with and tokens of a forward pass.
        devices: What computes it.
        on_part: Told trajectories done and in all.
    """
    logprobs = np.zeros(len(batch.token_ids), dtype=np.float32)
    pairs = pairs_per_token(model)
    everything = np.arange(len(batch))
    limit, done = config.micro_batch_tokens, 0
    model.eval()
    share = devices.share(batch, everything, limit, pairs_per_token=pairs)
    with torch.no_grad():
        for part in share.parts:
            pack = make_pack(batch, part, model.device, pairs_per_token=pairs)
            logprobs[pack.places] = devices.logprobs(model, pack, config)[0].cpu().numpy()
            done += len(part)
            on_part(done, len(batch))
        for part in share.idle:
            pack = make_pack(batch, part, model.device, pairs_per_token=pairs)
            devices.logprobs(model, pack, config)
    devices.add_up([logprobs])
    return logprobs
