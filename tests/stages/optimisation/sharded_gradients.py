"""Run by torchrun: gradients and log-probabilities of two processes against those of one."""

import sys

import numpy as np
import torch
import torch.distributed as dist

from schemas.optimisation import OptimisationConfig
from stages.optimisation import score_batch
from stages.optimisation.aggregation import token_weights
from stages.optimisation.devices import ONE_DEVICE, Devices
from stages.optimisation.objective import Objective
from stages.optimisation.sharding import ShardedDevices
from stages.optimisation.trace import Trace
from tests.stages.optimisation.optimisation_batches import grouped_batch
from tests.stages.optimisation.optimisation_models import tiny_model


def main(architecture: str, by_block: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    config = OptimisationConfig(
        micro_batch_tokens=40, recompute_activations=architecture != "mamba"
    )
    batch = grouped_batch([9, 4, 17], prompt=6, samples=4)
    everything = np.arange(len(batch))
    weights = token_weights(batch, everything, config)
    model, alone = tiny_model(architecture), tiny_model(architecture)
    sharded = ShardedDevices(model, by_block=by_block)
    cases: list[tuple[torch.nn.Module, Devices]] = [(model, sharded), (alone, ONE_DEVICE)]
    scored = []
    for which, devices in cases:
        # Scored first, as with a correction of mismatch: the pass must leave no weights behind.
        scored.append(score_batch(which, batch, config, devices))
        objective = Objective.of(
            which, batch, config, devices, reference_logprobs=None, on_part=lambda done, of: None
        )
        objective.accumulate(everything, weights, Trace.of(batch))
    np.testing.assert_allclose(scored[0], scored[1], rtol=1e-5, atol=1e-6)
    gradients = sharded.gather({name: p.grad for name, p in model.named_parameters()})
    if dist.get_rank() == 0:
        for name, weight in alone.named_parameters():
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-6, atol=1e-9, msg=name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "by_block")
