"""Settings of the policy update."""

from typing import Literal

from pydantic import Field

from schemas.section import Section

Loss = Literal["clipped", "dual_clip", "gspo", "gspo_turn", "cispo", "policy_gradient"]
"""Name of a policy loss; `stages.optimisation.losses` has the formula of each."""


class OptimisationConfig(Section):
    """Update of the policy from stored tokens and credit."""

    learning_rate: float = Field(2.5e-4, gt=0)
    """Peak rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up; `linear` and `cosine` end at 0 with the run."""
    warmup_iterations: int = Field(0, ge=0)
    """Iterations in which the rate rises from 0 to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    minibatches: int = Field(2, ge=1)
    """Optimiser steps of an iteration."""
    micro_batch_tokens: int = Field(4_096, ge=1)
    """Tokens of one forward pass; a trajectory longer than that has one of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers that forward and backward pass compute with; weights stay as they are."""
    recompute_activations: bool = False
    """Whether the backward pass computes each block anew: less memory, and slower."""
    loss: Loss = "clipped"
    clip_low: float = Field(0.2, gt=0, lt=1)
    """A ratio below 1 minus this is clipped. GSPO wants bounds of about 3e-4."""
    clip_high: float = Field(0.28, gt=0)
    """A ratio above 1 plus this is clipped."""
    dual_clip: float = Field(10.0, gt=1)
    """Bound of the ratio for turns with negative advantage, of `dual_clip`."""
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """Mean over the tokens of a step, over the means of its trajectories, or over its trajectories
    of sums divided by `constant_tokens`."""
    constant_tokens: int = Field(512, ge=1)
    """Divisor of `constant_length`, the same for every trajectory, as in Dr. GRPO."""
    reference_kl: float = Field(0.0, ge=0)
    """Weight of the divergence from the policy of iteration 0; 0 needs no reference."""
    reference_kl_estimate: Literal["k1", "k2", "k3"] = "k3"
    """How the divergence is estimated from a token; the gradient of `k1` is 0 on average."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the entropy that is added to the objective."""
    mismatch: Literal["off", "truncate", "mask"] = "off"
    """Correction where the policy that the update begins with is not what sampled: another engine
    or number format, or stale rollouts. `truncate` caps the weight of a token, `mask` leaves out
    tokens whose weight is out of bounds."""
    mismatch_bound: float = Field(2.0, gt=1)
    """Largest weight of a token; `mask` also leaves out those below its inverse."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient of a step."""
    max_kl: float = Field(1.0, gt=0)
    """Mean divergence from the sampling policy, nats a token, beyond which an update is stopped."""
    measure_change: bool = True
    """Whether a pass after the last step measures what each turn's log-probability came to."""
    lora_rank: int = Field(0, ge=0)
    """Rank of the matrices that are trained beside each linear layer; 0 trains all weights."""
    lora_alpha: int = Field(32, ge=1)
    """What LoRA adds is multiplied by this and divided by the rank."""
