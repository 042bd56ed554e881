"""An update on stored policies: opens them, computes, in this process or as one of several."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemas.optimisation import OptimisationConfig
from stages.optimisation import Batch, Update, optimise, score_batch
from stages.optimisation.adapter import Adapter, attach, detach
from stages.optimisation.devices import ONE_DEVICE, Devices
from storage.checkpoints import (
    load_adapter,
    load_base,
    load_optimiser_state,
    load_policy,
    save_policy,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that decides an update; several processes each read the same one."""

    policy: Path
    """Folder of the policy that is updated."""
    reference: Path | None
    """Folder of the policy that it must stay near to; null where that is not asked for."""
    batch: Batch
    config: OptimisationConfig
    seed: int
    iteration: int
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What an update came to, and the policy that it was made of."""

    update: Update
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    devices: Devices


def learn(
    job: Job,
    device: str,
    on_progress: Callable[[str], None],
    devices_of: Callable[[PreTrainedModel], Devices] = lambda model: ONE_DEVICE,
) -> Learned:
    """Computes an update.

    Args:
        job: Of what.
        device: Torch device of this process.
        on_progress: Told in a few words how far it is.
        devices_of: What computes with a model; may change the model.

    Raises:
        TurnledgerError: If a policy or the batch cannot be used.
    """
    reference = None
    if job.reference is not None:
        other, _ = load_policy(job.reference, device=device)
        reference = score_batch(other, job.batch, job.config, devices_of(other))
        del other
    model, tokenizer = load_policy(job.policy, device=device)
    state = prepare(job, model)
    devices = devices_of(model)
    update = optimise(
        model,
        job.batch,
        job.config,
        optimiser_state=state,
        seed=job.seed,
        iteration=job.iteration,
        iterations=job.iterations,
        reference_logprobs=reference,
        devices=devices,
        on_progress=on_progress,
    )
    return Learned(update=update, model=model, tokenizer=tokenizer, devices=devices)


def prepare(job: Job, model: PreTrainedModel) -> dict[str, Any] | None:
    """Puts an adapter on a policy if one is trained; returns the optimiser's state that fits."""
    stored, goes_on = _stored_adapter(job)
    if job.config.lora_rank:
        if goes_on:
            attach(model, job.config, stored, load_base(job.policy), seed=job.seed)
        else:
            attach(model, job.config, seed=job.seed)
    return load_optimiser_state(job.policy) if goes_on else None


def save_learned(
    folder: Path,
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimiser_state: dict[str, Any],
) -> None:
    """Writes the next policy into an empty folder, an adapter merged and beside it.

    Raises:
        OSError: If the file system refuses.
    """
    if not job.config.lora_rank:
        save_policy(folder, model, tokenizer, optimiser_state)
        return
    adapter, base = detach(model, job.config)
    same_base = job.policy if _stored_adapter(job)[1] else base
    save_policy(folder, model, tokenizer, optimiser_state, asdict(adapter), same_base)


def _stored_adapter(job: Job) -> tuple[Adapter | None, bool]:
    """Returns the adapter of a policy, and whether the update goes on with what is stored there.

    An adapter of other settings stays merged, and so does one where all weights are trained: what
    is trained then is new, and so is its optimiser.
    """
    kept = load_adapter(job.policy)
    stored = None if kept is None else Adapter(**kept)
    if not job.config.lora_rank:
        return stored, stored is None
    return stored, stored is not None and stored.fits(job.config)
