"""Updates of small policies on random batches, for tests of what computes them."""

import dataclasses
from pathlib import Path
from typing import Any

from flows.learning import Job
from flows.learning_processes import update_policy
from schemas.config import ComputeConfig
from schemas.optimisation import OptimisationConfig
from stages.optimisation import Batch, Update
from storage.checkpoints import save_policy
from tests.stages.rollout.rollout_policies import letters_tokenizer, random_model


def job_of(
    folder: Path, kind: str, config: OptimisationConfig, batch: Batch, **changes: Any
) -> Job:
    """Stores a random policy and returns an update of it."""
    policy = folder / "policy"
    policy.mkdir()
    save_policy(policy, random_model(kind), letters_tokenizer(), None)
    job = Job(
        policy=policy,
        reference=None,
        batch=batch,
        config=config,
        seed=0,
        iteration=1,
        iterations=2,
    )
    return dataclasses.replace(job, **changes)


def updated(job: Job, compute: ComputeConfig, folder: Path) -> Update:
    """Updates the policy of a job and writes the next one."""
    update, write = update_policy(job, compute, lambda text: None)
    folder.mkdir()
    assert write is not None
    write(folder)
    return update
