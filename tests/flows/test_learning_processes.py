"""Updates on two processes against updates on one."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import update_jobs
from polars.testing import assert_frame_equal
from update_jobs import updated

from flows.learning import Job
from flows.learning_processes import update_policy
from schemas.config import ComputeConfig
from schemas.errors import TurnledgerError
from schemas.optimisation import OptimisationConfig
from storage.checkpoints import load_optimiser_state, load_policy, save_policy
from tests.process_trees import alive, processes_below, wait_until
from tests.stages.optimisation.optimisation_batches import ragged_batch, replaced
from tests.stages.rollout.rollout_policies import letters_tokenizer, random_model

pytestmark = pytest.mark.long
TWO = ComputeConfig(threads=1, processes=2)
ONE = ComputeConfig(threads=1)
CONFIG = OptimisationConfig(minibatches=2, micro_batch_tokens=30, learning_rate=1e-3, max_kl=1e6)
LENGTHS = [9, 4, 17, 12, 2, 6, 40]


def quiet(text: str) -> None:
    pass


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_of(tmp_path, "llama")


def job_of(folder: Path, kind: str, **changes: Any) -> Job:
    known = {"config": CONFIG, "batch": ragged_batch(LENGTHS), **changes}
    return update_jobs.job_of(folder, kind, **known)


def assert_same_policy(ours: Path, theirs: Path) -> None:
    """Compares moments and weights; a step of Adam moves a weight by about the learning rate.

    Weights whose gradient is nothing but rounding, such as the bias of attention's keys, are left
    out: Adam makes whole steps of it.
    """
    models = [load_policy(folder)[0] for folder in (ours, theirs)]
    states = [load_optimiser_state(folder) for folder in (ours, theirs)]
    assert states[0] is not None
    assert states[1] is not None
    weights = zip(*(model.named_parameters() for model in models), strict=True)
    for number, ((name, one), (_, two)) in enumerate(weights):
        moments = [state["state"][number] for state in states]
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                moments[1][moment], moments[0][moment], rtol=1e-3, atol=1e-6, msg=f"{name} {moment}"
            )
        has_gradient = moments[0]["exp_avg_sq"] > 1e-12
        torch.testing.assert_close(two * has_gradient, one * has_gradient, rtol=0, atol=2e-5)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "clipped": {},
    "everything": {
        "loss": "gspo_turn",
        "aggregation": "sequence_mean",
        "mismatch": "truncate",
        "entropy_bonus": 0.1,
        "recompute_activations": True,
        "weight_decay": 0.1,
    },
}


@pytest.mark.parametrize(
    ("kind", "objective"), [("llama", "everything"), ("gpt2", "clipped"), ("qwen3", "clipped")]
)
def test_two_processes_learn_what_one_does(kind: str, objective: str, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update=OBJECTIVES[objective])
    job = job_of(tmp_path, kind, config=config)
    one = updated(job, ONE, tmp_path / "one")
    two = updated(job, TWO, tmp_path / "two")
    assert_same_policy(tmp_path / "one", tmp_path / "two")
    for name in ("updates", "turn_updates"):
        ours, theirs = getattr(one, name), getattr(two, name)
        varying = [c for c in ("seconds", "micro_batches", "packed_tokens") if c in ours.columns]
        assert_frame_equal(ours.drop(varying), theirs.drop(varying), rel_tol=1e-3, abs_tol=1e-5)


def test_a_reference_is_scored_by_both(tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    other = random_model("llama")
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.9)
    save_policy(reference, other, letters_tokenizer(), None)
    config = CONFIG.model_copy(update={"reference_kl": 0.3})
    job = job_of(tmp_path, "llama", reference=reference, config=config)
    updates = [
        updated(job, compute, tmp_path / str(compute.processes)).updates for compute in (ONE, TWO)
    ]
    assert_same_policy(tmp_path / "1", tmp_path / "2")
    kl = [frame["reference_kl"].to_list() for frame in updates]
    assert kl[1] == pytest.approx(kl[0], rel=1e-4)


def test_one_process_continues_what_two_began_and_two_what_one_began(tmp_path: Path) -> None:
    first = job_of(tmp_path, "llama")
    updated(first, ONE, tmp_path / "one")
    updated(first, TWO, tmp_path / "two")
    for began, compute in (("one", TWO), ("two", ONE), ("one", ONE)):
        job = dataclasses.replace(first, policy=tmp_path / began, seed=1)
        updated(job, compute, tmp_path / f"{began}{compute.processes}")
    assert_same_policy(tmp_path / "one1", tmp_path / "one2")
    assert_same_policy(tmp_path / "one1", tmp_path / "two1")


def test_the_same_processes_give_the_same_bits(job: Job, tmp_path: Path) -> None:
    for name in ("a", "b"):
        updated(job, TWO, tmp_path / name)
    one, two = (load_policy(tmp_path / name)[0].state_dict() for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_process_without_trajectories_waits_for_the_other(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"micro_batch_tokens": 1, "minibatches": 1})
    job = job_of(tmp_path, "llama", batch=ragged_batch([9]), config=config)
    updated(job, ONE, tmp_path / "one")
    updated(job, TWO, tmp_path / "two")
    assert_same_policy(tmp_path / "one", tmp_path / "two")


def test_an_empty_batch_is_a_step_that_is_not_taken(tmp_path: Path) -> None:
    terms = {"reference_kl": 0.1, "mismatch": "mask", "entropy_bonus": 0.1}
    config = CONFIG.model_copy(update=terms)
    job = job_of(tmp_path, "llama", batch=ragged_batch([]), config=config)
    job = dataclasses.replace(job, reference=job.policy)
    update = updated(job, TWO, tmp_path / "two")
    assert update.updates.is_empty()
    assert update.turn_updates.is_empty()
    assert update.faults.is_empty()
    before, after = (load_policy(p)[0].state_dict() for p in (job.policy, tmp_path / "two"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_guard_stops_both_and_names_the_same_turns(tmp_path: Path) -> None:
    batch = ragged_batch(LENGTHS)
    start, end = batch.offsets[2], batch.offsets[3]
    advantages, logprobs = batch.advantages.copy(), batch.logprobs.copy()
    advantages[start:end] = np.where(batch.trained[start:end], -1, 0)
    logprobs[start:end] = np.where(batch.trained[start:end], -200, 0)
    broken = replaced(batch, advantages=advantages, logprobs=logprobs)
    config = CONFIG.model_copy(update={"max_kl": 3e38})
    job = job_of(tmp_path, "llama", batch=broken, config=config)
    faults = []
    for compute in (ONE, TWO):
        update, write = update_policy(job, compute, quiet)
        assert write is None
        faults.append(update.faults)
    assert len(faults[0]) > 0
    assert faults[1].equals(faults[0])


def test_progress_is_told_once(job: Job) -> None:
    told: list[str] = []
    update_policy(job, TWO, told.append)
    assert [line for line in told if line.startswith("step")] == ["step 1 of 2", "step 2 of 2"]


def test_a_refusal_is_that_of_one_process(job: Job) -> None:
    unknown = replaced(job.batch, token_ids=job.batch.token_ids + 1_000)
    with pytest.raises(TurnledgerError, match="beyond the policy's vocabulary") as two:
        update_policy(dataclasses.replace(job, batch=unknown), TWO, quiet)
    with pytest.raises(TurnledgerError) as one:
        update_policy(dataclasses.replace(job, batch=unknown), ONE, quiet)
    assert str(two.value) == str(one.value)


def test_a_damaged_optimiser_is_one_clear_line(job: Job) -> None:
    (job.policy / "optimiser.pt").write_bytes(b"broken")
    with pytest.raises(TurnledgerError, match=r"optimisation: process \d of 2 failed: ") as raised:
        update_policy(job, TWO, quiet)
    assert "\n" not in str(raised.value)


def test_a_killed_process_ends_the_others_with_a_clear_line(job: Job) -> None:
    killed: list[int] = []

    def kill_one(text: str) -> None:
        if not killed and text.startswith("step"):
            killed.append(worker_of_rank("1"))
            os.kill(killed[0], signal.SIGKILL)

    many = dataclasses.replace(
        job, batch=ragged_batch(LENGTHS * 40), config=CONFIG.model_copy(update={"minibatches": 90})
    )
    with pytest.raises(TurnledgerError, match=r"process 1 of 2 was killed \(signal 9\)"):
        update_policy(many, TWO, kill_one)
    assert not [n for n in processes_below(os.getpid()).values() if "learning_worker" in n]


def worker_of_rank(rank: str) -> int:
    """Returns the process of a rank below this one."""
    for pid, name in processes_below(os.getpid()).items():
        if "learning_worker" in name:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in environment:
                return pid
    raise AssertionError(f"no process of rank {rank}")


OWNER = """
import pickle, sys
from flows.learning_processes import learn_on_processes
from schemas.config import ComputeConfig

job = pickle.load(open(sys.argv[1], "rb"))
learn_on_processes(job, ComputeConfig(threads=1, processes=2), lambda text: print(text, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_process_that_asked(
    how: signal.Signals, job: Job, tmp_path: Path
) -> None:
    many = dataclasses.replace(
        job, batch=ragged_batch(LENGTHS * 40), config=CONFIG.model_copy(update={"minibatches": 90})
    )
    (tmp_path / "job").write_bytes(pickle.dumps(many))
    (tmp_path / "temporary").mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "job")],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout is not None
    assert any(line.startswith("step") for line in owner.stdout)
    below = set(processes_below(owner.pid))
    assert len(below) >= 4  # the keeper, torchrun and two processes
    owner.send_signal(how)
    owner.wait()
    assert wait_until(lambda: not alive(below), 60)
    assert wait_until(lambda: not list((tmp_path / "temporary").glob("turnledger-*")), 60)
