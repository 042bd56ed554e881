"""Tables of the optimisation: its steps, what they did to each turn, and why one was stopped."""

from enum import StrEnum

import dataframely as dy

from schemas.columns import category


class Fault(StrEnum):
    """Why an update was stopped before a step."""

    LOGPROB_NOT_FINITE = "logprob_not_finite"
    """The policy gives a token of the turn a log-probability that is no number."""
    DIVERGENCE = "divergence"
    """The step is too far from the sampling policy, and the turn is further than that."""
    GRADIENT_NOT_FINITE = "gradient_not_finite"
    """The gradient of the turn's trajectory is no number; of all turns if only their sum is."""


class Updates(dy.Schema):
    """Grain: optimiser step. Means are over the tokens of the step, each counting the same."""

    step = dy.Int32(primary_key=True, min=0, metadata={"doc": "Step within the stage run."})
    loss = dy.Float64(metadata={"doc": "Objective to minimise: all terms, as aggregated."})
    policy_loss = dy.Float64(metadata={"doc": "Its first term: the policy loss."})
    clip_fraction_low = dy.Float64(metadata={"doc": "Share of tokens clipped at the lower bound."})
    clip_fraction_high = dy.Float64(metadata={"doc": "Share of tokens clipped at the upper bound."})
    ratio_mean = dy.Float64(
        nullable=True, metadata={"doc": "Mean probability ratio; null in old files."}
    )
    ratio_max = dy.Float64(metadata={"doc": "Largest probability ratio of a token."})
    kl = dy.Float64(metadata={"doc": "Mean of r - 1 - log r against the sampling policy."})
    reference_kl = dy.Float64(
        nullable=True, metadata={"doc": "Mean divergence from the reference; null without."}
    )
    entropy = dy.Float64(metadata={"doc": "Mean entropy of the policy, nats a token."})
    mismatch_weight = dy.Float64(
        nullable=True, metadata={"doc": "Mean weight against mismatch; null without."}
    )
    mismatch_bounded = dy.Float64(
        nullable=True, metadata={"doc": "Share of tokens capped or left out; null without."}
    )
    advantage_mean = dy.Float64(
        nullable=True, metadata={"doc": "Mean advantage; null in old files."}
    )
    advantage_std = dy.Float64(
        nullable=True, metadata={"doc": "Standard deviation of it; null in old files."}
    )
    gradient_norm = dy.Float64(metadata={"doc": "Global gradient norm before clipping."})
    learning_rate = dy.Float64(metadata={"doc": "Learning rate of the step."})
    trajectories = dy.Int32(metadata={"doc": "Trajectories of the step."})
    turns = dy.Int32(nullable=True, metadata={"doc": "Turns of the step; null in old files."})
    tokens = dy.Int64(metadata={"doc": "Generated tokens that carried loss."})
    packed_tokens = dy.Int64(
        nullable=True,
        metadata={"doc": "Tokens computed, a shared prompt once; null in old files."},
    )
    micro_batches = dy.Int32(nullable=True, metadata={"doc": "Forward passes; null in old files."})
    seconds = dy.Float64(metadata={"doc": "Wall time of the step, seconds.", "measured": True})


class TurnUpdates(dy.Schema):
    """Grain: turn that a step learned from. Means are over its tokens, as its step saw them."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Group of the turn."})
    sample_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Trajectory in its group."})
    turn_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Turn in its trajectory."})
    step = dy.Int32(min=0, metadata={"doc": "Step that learned from it."})
    tokens = dy.Int32(min=1, metadata={"doc": "Tokens of the turn that carried loss."})
    logprob = dy.Float64(metadata={"doc": "Mean log-probability when sampled, nats."})
    log_ratio = dy.Float64(
        metadata={"doc": "What earlier steps had added to that when its own began, nats."}
    )
    logprob_change = dy.Float64(
        nullable=True,
        metadata={"doc": "What all steps have added to it, nats; null if it was not measured."},
    )
    ratio_mean = dy.Float64(metadata={"doc": "Mean ratio that the loss bounds."})
    ratio_max = dy.Float64(metadata={"doc": "Largest of them."})
    clip_fraction_low = dy.Float64(metadata={"doc": "Share of tokens clipped at the lower bound."})
    clip_fraction_high = dy.Float64(metadata={"doc": "Share of tokens clipped at the upper bound."})
    kl = dy.Float64(metadata={"doc": "Mean of r - 1 - log r against the sampling policy."})
    entropy = dy.Float64(metadata={"doc": "Mean entropy of the policy, nats a token."})


class OptimisationFaults(dy.Schema):
    """Grain: turn at fault. Rows only where a guard stopped the update; there is no policy then."""

    task_id = dy.String(primary_key=True, metadata={"doc": "Group of the turn."})
    sample_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Trajectory in its group."})
    turn_index = dy.Int32(primary_key=True, min=0, metadata={"doc": "Turn in its trajectory."})
    step = dy.Int32(min=0, metadata={"doc": "Step that was not taken."})
    reason = category(Fault, "Why not.")
    value = dy.Float64(
        nullable=True,
        metadata={"doc": "Mean divergence of the turn, nats; null if it is none, or no number."},
    )


class GradientNoise(dy.Schema):
    """Grain: group. What its trajectories alone ask of the weights, before any step of the update.

    The gradients are those of the policy loss, each multiplied by the number of groups, so that
    their mean is the gradient of the batch.
    """

    task_id = dy.String(primary_key=True, metadata={"doc": "The group."})
    trajectories = dy.Int32(min=1, metadata={"doc": "Its trajectories that are learnt from."})
    tokens = dy.Int64(min=1, metadata={"doc": "Generated tokens that carried loss."})
    squared_norm = dy.Float64(min=0, metadata={"doc": "Squared norm of its gradient."})
    with_earlier = dy.Float64(
        metadata={"doc": "Sum of the dot products with the gradients of the groups before it."}
    )
