"""The update in a flow: other losses on a stored rollout, the reference, and a guard's stop."""

import json
from pathlib import Path

import polars as pl
import pytest
from small_runs import Cli, sets

from schemas.tables import TURN_KEY
from storage import Store, open_table
from storage.layout import Slot


def rerun(cli: Cli, store: Path, into: str, *overrides: str, run: str = "small") -> str:
    done = cli.run(
        *("rerun", "optimisation", "--store", str(store), "--run", run, "--iteration", "2"),
        *("--into", into, "--until", "optimisation", *sets(*overrides)),
    )
    return done.stderr if done.returncode else ""


def updates(store: Path, run: str, table: str = "updates") -> pl.DataFrame:
    return open_table(store, run, table).filter(iteration=2).collect()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("update-gspo", ["loss=gspo_turn", "clip_low=0.003", "aggregation=sequence_mean"]),
        ("update-corrected", ["mismatch=truncate", "entropy_bonus=0.01"]),
    ],
)
def test_another_loss_samples_nothing(
    cli: Cli, trained: Path, name: str, overrides: list[str]
) -> None:
    assert rerun(cli, trained, name, *overrides) == ""
    turns, before = (open_table(trained, run, "turns").collect() for run in (name, "small"))
    assert turns.drop("run").equals(before.filter(iteration=2).drop("run"))
    assert updates(trained, name)["loss"].to_list() != updates(trained, "small")["loss"].to_list()
    corrected = updates(trained, name)["mismatch_weight"]
    assert corrected.is_null().all() == (name == "update-gspo")


def test_the_reference_is_the_policy_of_the_cold_start(cli: Cli, trained: Path) -> None:
    assert rerun(cli, trained, "update-held", "reference_kl=0.1") == ""
    found = updates(trained, "update-held")
    # The policy before iteration 2 has moved since; it is not the reference by itself.
    assert found["reference_kl"].min() > 1e-8
    assert found["loss"].to_list() != found["policy_loss"].to_list()
    (manifest,) = [
        manifest
        for uri, manifest in Store.open(trained).results("update-held")
        if "iteration=0002" in uri and "stage=optimisation" in uri
    ]
    first = Store.open(trained).manifest(
        Slot(run="small", iteration=0, split="train", stage="cold_start")
    )
    assert first is not None
    assert manifest.fingerprint.inputs["reference"] == first.output("x").checkpoint.content


def test_every_turn_with_credit_is_told_and_none_else(trained: Path) -> None:
    told = updates(trained, "small", "turn_updates").select(TURN_KEY)
    credited = updates(trained, "small", "advantages").filter(pl.col("advantage").is_not_null())
    sampled = updates(trained, "small", "turns").filter(pl.col("token_ids").list.len() > 0)
    expected = credited.join(sampled, on=TURN_KEY, how="semi").select(TURN_KEY)
    assert told.sort(TURN_KEY).equals(expected.sort(TURN_KEY))
    assert len(told) > 0


def test_a_stopped_update_names_its_turns_and_loses_nothing(cli: Cli, trained: Path) -> None:
    error = rerun(cli, trained, "update-stopped", "max_kl=1e-6")
    assert "the update of iteration 2 was stopped before step 1: divergence" in error
    assert "Traceback" not in error
    faults = updates(trained, "update-stopped", "optimisation_faults")
    assert set(faults["reason"]) == {"divergence"}
    assert updates(trained, "update-stopped")["step"].to_list() == [0]
    assert set(updates(trained, "update-stopped", "turn_updates")["step"]) == {0}
    told = cli.run("watch", "update-stopped", "--store", str(trained), "--json").stdout
    (done,) = (line for line in map(json.loads, told.splitlines()) if line["event"] == "iteration")
    assert done["faults"] == len(faults)
    # What the line says to do goes on from there.
    line = "turnledger rerun optimisation --run update-stopped --iteration 2 --into NAME"
    assert line in " ".join(error.split())
    assert rerun(cli, trained, "update-mended", "max_kl=1", run="update-stopped") == ""
    same = ["step", "loss", "kl", "gradient_norm"]
    assert (
        updates(trained, "update-mended")
        .select(same)
        .equals(updates(trained, "small").select(same))
    )


def test_the_rate_of_a_schedule_is_that_of_the_iteration(cli: Cli, trained: Path) -> None:
    assert rerun(cli, trained, "update-linear", "schedule=linear", "learning_rate=0.001") == ""
    assert updates(trained, "update-linear")["learning_rate"].to_list() == pytest.approx(
        [5e-4, 2.5e-4]
    )
