"""Updates of an adapter, merged for whoever samples."""

import dataclasses
from pathlib import Path

import pytest
import torch
import update_jobs

from flows.learning import Job
from schemas.config import ComputeConfig
from schemas.errors import ConfigError, PolicyError
from schemas.optimisation import OptimisationConfig
from stages.optimisation import score_batch
from stages.optimisation.adapter import Adapter, attach, detach
from storage.checkpoints import BASE_FILE, load_adapter, load_base, load_policy
from tests.stages.optimisation.optimisation_batches import ragged_batch

pytest.importorskip("peft")
ONE = ComputeConfig(threads=1)
CONFIG = OptimisationConfig(learning_rate=1e-2, lora_rank=4, lora_alpha=8, max_kl=1e6)
LENGTHS = [9, 4, 17, 12, 2, 6]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def job_of(folder: Path, kind: str = "llama") -> Job:
    return update_jobs.job_of(folder, kind, CONFIG, ragged_batch(LENGTHS))


def updated(job: Job, folder: Path, compute: ComputeConfig = ONE) -> Path:
    update_jobs.updated(job, compute, folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merged_policy_says_what_the_adapter_says(kind: str, tmp_path: Path) -> None:
    job = job_of(tmp_path, kind)
    after = updated(job, tmp_path / "after")
    merged = score_batch(load_policy(after)[0], job.batch, CONFIG)
    kept = load_adapter(after)
    assert kept is not None
    apart, _ = load_policy(job.policy)
    attach(apart, CONFIG, Adapter(**kept), load_base(after), seed=1)
    beside = score_batch(apart, job.batch, CONFIG)
    assert abs(merged - beside).max() < 1e-4
    before = score_batch(load_policy(job.policy)[0], job.batch, CONFIG)
    assert abs(merged - before).max() > 1e-2


def test_only_linear_layers_of_the_blocks_change_and_by_the_rank(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    before = load_policy(job.policy)[0].state_dict()
    after = load_policy(updated(job, tmp_path / "after"))[0].state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        if "_proj" in name:
            change = (after[name] - weight).double()
            assert 1 <= int(torch.linalg.matrix_rank(change, atol=1e-5)) <= CONFIG.lora_rank
        else:
            assert torch.equal(after[name], weight)


def test_a_stored_adapter_goes_on_as_one_that_was_never_stored(tmp_path: Path) -> None:
    from stages.optimisation import optimise

    first = job_of(tmp_path)
    second = dataclasses.replace(
        first, policy=updated(first, tmp_path / "one"), batch=ragged_batch(LENGTHS, seed=1), seed=1
    )
    resumed, _ = load_policy(updated(second, tmp_path / "two"))
    whole, _ = load_policy(first.policy)
    attach(whole, CONFIG, seed=0)
    state = optimise(whole, first.batch, CONFIG, optimiser_state=None, seed=0).optimiser_state
    optimise(whole, second.batch, CONFIG, optimiser_state=state, seed=1)
    detach(whole, CONFIG)
    undisturbed = whole.state_dict()
    assert all(torch.equal(w, undisturbed[name]) for name, w in resumed.state_dict().items())


def test_what_an_adapter_stands_beside_is_stored_once(tmp_path: Path) -> None:
    first = job_of(tmp_path)
    second = dataclasses.replace(first, policy=updated(first, tmp_path / "one"))
    third = dataclasses.replace(first, policy=updated(second, tmp_path / "two"))
    updated(third, tmp_path / "three")
    one, two, three = (tmp_path / name / BASE_FILE for name in ("one", "two", "three"))
    assert one.samefile(two)
    assert one.samefile(three)
    before = load_policy(first.policy)[0].state_dict()
    base = load_base(tmp_path / "three")
    assert base
    assert all(torch.equal(matrix, before[name]) for name, matrix in base.items())


def test_an_adapter_without_its_base_is_refused_in_one_line(tmp_path: Path) -> None:
    first = job_of(tmp_path)
    second = dataclasses.replace(first, policy=updated(first, tmp_path / "one"))
    (second.policy / BASE_FILE).unlink()
    with pytest.raises(PolicyError, match=r"lora_base\.safetensors cannot be read: "):
        updated(second, tmp_path / "two")


def test_an_empty_batch_leaves_the_merged_policy_as_it_was(tmp_path: Path) -> None:
    first = dataclasses.replace(job_of(tmp_path), batch=ragged_batch([]))
    second = dataclasses.replace(first, policy=updated(first, tmp_path / "one"))
    after = load_policy(updated(second, tmp_path / "two"))[0].state_dict()
    before = load_policy(first.policy)[0].state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_another_rank_begins_at_the_merged_policy(tmp_path: Path) -> None:
    first = job_of(tmp_path)
    other = CONFIG.model_copy(update={"lora_rank": 2, "learning_rate": 1e-12})
    second = dataclasses.replace(first, policy=updated(first, tmp_path / "one"), config=other)
    before = load_policy(second.policy)[0].state_dict()
    after = load_policy(updated(second, tmp_path / "two"))[0].state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight)


def test_all_weights_are_trained_from_a_merged_policy(tmp_path: Path) -> None:
    first = job_of(tmp_path)
    full = CONFIG.model_copy(update={"lora_rank": 0})
    second = dataclasses.replace(first, policy=updated(first, tmp_path / "one"), config=full)
    after = updated(second, tmp_path / "two")
    assert load_adapter(after) is None
    before = load_policy(second.policy)[0].state_dict()
    assert all(not torch.equal(w, before[n]) for n, w in load_policy(after)[0].state_dict().items())


def test_two_processes_train_the_adapter_that_one_does(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    one = load_policy(updated(job, tmp_path / "one"))[0].state_dict()
    both = ComputeConfig(threads=1, processes=2)
    two = load_policy(updated(job, tmp_path / "two", both))[0].state_dict()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs the package peft: install turnledger\[lora\]"):
        updated(job_of(tmp_path), tmp_path / "after")
