"""The objective of an update: the loss of packs, term by term, and its gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.optimisation import OptimisationConfig
from stages.optimisation.batches import Batch
from stages.optimisation.devices import ONE_DEVICE, Devices
from stages.optimisation.divergence import divergence
from stages.optimisation.forward import pairs_per_token
from stages.optimisation.losses import LOSSES, Tokens
from stages.optimisation.mismatch import importance_weights
from stages.optimisation.packing import Pack, make_pack
from stages.optimisation.scoring import score_batch
from stages.optimisation.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised on one batch; the weights of the model change under it."""

    model: PreTrainedModel
    batch: Batch
    config: OptimisationConfig
    devices: Devices
    old_logprobs: NDArray[np.float32]  # [tokens] that the ratio compares with
    importance: NDArray[np.float32] | None  # [tokens] weights against mismatch
    reference_logprobs: NDArray[np.float32] | None  # [tokens]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        batch: Batch,
        config: OptimisationConfig,
        devices: Devices = ONE_DEVICE,
        *,
        reference_logprobs: NDArray[np.float32] | None,
        on_part: Callable[[int, int], None],
    ) -> "Objective":
        """Returns the objective of an update that begins with the model as it is.

        Args:
            model: Policy.
            batch: Trajectories.
            config: Loss and terms.
            devices: What computes it.
            reference_logprobs: [tokens] under the reference.
            on_part: Told trajectories scored and in all, where mismatch is corrected.

        Raises:
            ValueError: If the reference's log-probabilities are needed and not given.
        """
        if config.reference_kl and reference_logprobs is None:
            raise ValueError("reference_kl needs the reference's log-probabilities")
        old, importance = batch.logprobs, None
        if config.mismatch != "off":
            old = score_batch(model, batch, config, devices, on_part=on_part)
            importance = importance_weights(old, batch.logprobs, config)
        return cls(
            model=model,
            batch=batch,
            config=config,
            devices=devices,
            old_logprobs=old,
            importance=importance,
            reference_logprobs=reference_logprobs if config.reference_kl else None,
        )

    def accumulate(
        self, trajectories: NDArray[np.int64], weights: NDArray[np.float32], trace: Trace
    ) -> dict[str, int]:
        """Adds the gradient of a step to the model's, micro-batch by micro-batch.

        Args:
            trajectories: Those of the step.
            weights: [tokens] of the aggregation.
            trace: Where it is noted what the tokens came to.

        Returns:
            `packed_tokens` and `micro_batches`, as in `Updates`.
        """
        packed = 0
        pairs, limit = pairs_per_token(self.model), self.config.micro_batch_tokens
        share = self.devices.share(self.batch, trajectories, limit, pairs_per_token=pairs)
        passes = [*share.parts, *share.idle]
        for number, part in enumerate(passes):
            pack = make_pack(self.batch, part, self.model.device, pairs_per_token=pairs)
            self.devices.start_pass(is_last=number == len(passes) - 1)
            if number < len(share.parts):
                self.loss(pack, weights, trace).backward()
                packed += len(pack.token_ids)
            else:
                (0 * self._scored(pack)[0].sum()).backward()
        packed = trace.add_up(self.devices, self.batch.places(trajectories), packed)
        return {"packed_tokens": packed, "micro_batches": share.micro_batches}

    def _scored(self, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        has_gradient = self.config.entropy_bonus > 0
        return self.devices.logprobs(
            self.model, pack, self.config, entropy_has_gradient=has_gradient
        )

    def loss(self, pack: Pack, weights: NDArray[np.float32], trace: Trace) -> torch.Tensor:
        """Returns the weighted loss of a pack, and notes what its tokens came to."""
        config = self.config
        logprobs, entropy = self._scored(pack)
        turns = np.unique(self.batch.turns[pack.places], return_inverse=True)[1]
        tokens = Tokens(
            logprobs=logprobs,
            old_logprobs=pack.of(self.old_logprobs),
            advantages=pack.of(self.batch.advantages),
            trajectories=pack.trajectories,
            turns=torch.from_numpy(turns).to(logprobs.device),
        )
        policy = LOSSES[config.loss](tokens, config)
        loss = policy.loss
        if self.importance is not None:
            loss = loss * pack.of(self.importance)
        policy_loss, reference_kl = loss.detach(), None
        if self.reference_logprobs is not None:
            reference = pack.of(self.reference_logprobs)
            reference_kl = divergence(logprobs, reference, config.reference_kl_estimate)
            loss = loss + config.reference_kl * reference_kl
        if config.entropy_bonus:
            loss = loss - config.entropy_bonus * entropy
        trace.note(
            pack.places,
            loss=loss,
            policy_loss=policy_loss,
            logprob=logprobs,
            entropy=entropy,
            ratio=policy.ratio,
            clipped_low=policy.clipped_low,
            clipped_high=policy.clipped_high,
            kl=divergence(pack.of(self.batch.logprobs), logprobs.detach(), "k3"),
            reference_kl=reference_kl,
        )
        return (loss * pack.of(weights)).sum()

    def has_finite_gradient(self, trajectory: int, weights: NDArray[np.float32]) -> bool:
        """Says whether a trajectory alone has a finite gradient; the model's is lost."""
        self.model.zero_grad(set_to_none=True)
        self.accumulate(np.array([trajectory]), weights, Trace.of(self.batch))
        return self.devices.has_finite_gradient(list(self.model.parameters()))
