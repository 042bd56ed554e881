"""Rollouts that are sampled while the iteration before is still learned from."""

from pathlib import Path

import pytest
from killed_updates import train_until_killed
from small_runs import SMALL, Cli, contents, kept, sets

from flows.binding import Place
from flows.plan import plan_training
from flows.policies import policy_slot, stored_policy
from flows.train import sampler_of
from flows.work_times import work_times
from schemas.config_text import parse_config
from storage import Store, open_table

STALE = ("iterations=3", "evaluation.every=3", "rollout.stale=true")


@pytest.fixture(scope="module")
def stale(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("stale") / "store"
    cli.train(store, *STALE)
    return store


def test_the_sampler_is_the_policy_before_the_last() -> None:
    config = parse_config(overrides=["rollout.stale=true"])
    assert [sampler_of(iteration, config) for iteration in (1, 2, 3, 9)] == [0, 0, 1, 7]
    assert [sampler_of(n, parse_config()) for n in (1, 2, 9)] == [0, 1, 8]


def test_every_turn_names_the_policy_that_sampled_it(stale: Path) -> None:
    turns = open_table(stale, "small", "turns").collect()
    versions = turns.group_by("iteration").agg(versions="policy_version").sort("iteration")
    assert [set(row) for row in versions["versions"]] == [{0}, {0}, {1}]


def test_the_update_starts_from_the_last_policy(stale: Path) -> None:
    store = Store.open(stale)
    for iteration in (2, 3):
        manifest = store.manifest(policy_slot("small", iteration))
        assert manifest is not None
        before = stored_policy(store, "small", iteration - 1)
        assert manifest.fingerprint.inputs["policy"] == before.content


def test_a_stored_training_is_found_again(stale: Path) -> None:
    config = parse_config(overrides=(*SMALL, *STALE))
    plan = plan_training(Place(store=str(stale), run="small", iteration=0), config)
    assert set(plan["action"]) == {"hit"}


def test_a_rerun_samples_with_the_same_policy_and_can_be_trained_on(cli: Cli, stale: Path) -> None:
    source = ("--store", str(stale), "--run", "small", "--iteration", "3")
    until = ("--until", "rollout")  # who samples is all that is looked at
    done = cli.run("rerun", "rollout", *source, "--into", "warm", *until, *sets("temperature=0.5"))
    assert done.returncode == 0, done.stderr
    turns = open_table(stale, "warm", "turns").filter(iteration=3).collect()
    assert set(turns["policy_version"]) == {1}
    done = cli.run(
        *("rerun", "advantages", "--store", str(stale), "--run", "small", "--iteration", "2"),
        *("--into", "other", *sets("gamma=0.5")),
    )
    assert done.returncode == 0, done.stderr
    settings = sets(*SMALL, *STALE, "advantages.gamma=0.5")
    done = cli.run("train", "--store", str(stale), "--run", "other", *settings)
    assert done.returncode == 0, done.stderr
    assert set(
        open_table(stale, "other", "turns").filter(iteration=3).collect()["policy_version"]
    ) == {1}
    assert work_times(stale, "other", iteration=3).height


def test_a_killed_update_goes_on_to_the_same_bits_with_few_policies_kept(
    cli: Cli, stale: Path, tmp_path: Path
) -> None:
    settings = (*STALE, "compute.keep_policies=2")
    train_until_killed(cli, tmp_path / "killed", *settings, iteration=3)
    cli.train(tmp_path / "killed", *settings)
    assert contents(Store.open(tmp_path / "killed")) == contents(Store.open(stale))
    assert kept(tmp_path / "killed") == [0, 2, 3]
