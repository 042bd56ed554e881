"""Deployments and series of nights without a schedule: what they refuse and how they go on."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli_serve import serve
from flows.deployed import nightly, train
from flows.nightly import tonight
from schemas.config import RunConfig
from schemas.config_text import parse_config
from schemas.errors import ConfigError
from storage import RunRecord, Store

HELD_OUT = Path(__file__).parents[2] / "docs" / "examples" / "held-out.jsonl"


def night_config(folder: Path) -> RunConfig:
    return parse_config(overrides=[f"problems.path={folder}", f"evaluation.path={HELD_OUT}"])


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    (folder / "monday.jsonl").write_text('{"id": "p", "problem": "Add 1 and 1.", "answer": 2}\n')
    return folder


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        ({"prompts": 0}, "'config.rollout.prompts'.*less than the minimum of 1"),
        ({"promts": 3}, "'promts' was unexpected"),
        ({"dialogue": "xml"}, "'config.rollout.dialogue'"),
    ],
)
def test_the_server_refuses_what_the_settings_do_not_allow(
    rollout: dict[str, Any], told: str
) -> None:
    train.to_deployment(name="refused").apply()
    with pytest.raises(PrefectHTTPStatusError, match=told):
        run_deployment("train-session/refused", parameters={"config": {"rollout": rollout}})


def test_what_two_settings_make_impossible_fails_the_flow_run_with_its_reason() -> None:
    state = nightly(config={"problems": {"path": "inbox"}}, return_state=True)  # type: ignore[call-overload]
    assert state.is_failed()
    assert "evaluation.path: problems.path is set, so held-out problems need a path too" in (
        state.message or ""
    )


def test_an_error_is_one_line_in_the_state_of_the_flow_run(tmp_path: Path) -> None:
    config = night_config(tmp_path / "nowhere")
    state = nightly(str(tmp_path / "store"), "nightly", config, return_state=True)
    assert (state.message or "").splitlines() == [
        "Flow run encountered an exception: ProblemFileError: problems.path: problem file "
        f"{tmp_path / 'nowhere'} does not exist"
    ]


def test_a_second_night_at_once_is_refused(tmp_path: Path, inbox: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    config = night_config(inbox)
    with store.lock_run("nightly-0001"):
        store.save_run(RunRecord.new("nightly-0001", config, status="running"))
        state = nightly(str(tmp_path / "store"), "nightly", config, return_state=True)
    assert state.is_failed()
    assert "run nightly-0001" in (state.message or "")


def test_a_night_that_is_not_finished_goes_on(tmp_path: Path, inbox: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    config = night_config(inbox)
    store.save_run(RunRecord.new("nightly-0001", config, status="failed"))
    night = tonight(store, "nightly", config)
    assert (night.run, night.before, night.config) == ("nightly-0001", None, config)


def test_the_first_night_keeps_its_cold_start(tmp_path: Path, inbox: Path) -> None:
    config = night_config(inbox)
    night = tonight(Store.open(tmp_path / "store", create=True), "maths", config)
    assert (night.run, night.before, night.config) == ("maths-0001", None, config)


def test_a_night_needs_a_folder_of_problems(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"problems\.path is unset"):
        tonight(Store.open(tmp_path / "store", create=True), "nightly", RunConfig())


@pytest.mark.parametrize(
    ("scheduled", "options", "told"),
    [
        (["train"], {"cron": "at noon"}, "--cron 'at noon' is no cron line"),
        (["train"], {"cron": "0 2 * * *", "interval_s": 60}, "leave one of them out"),
        (["train"], {}, "name --cron or --interval"),
        ([], {"interval_s": 60}, "name what to start"),
        (["rerun"], {"interval_s": 60}, "needs a stage and an iteration"),
        (["daily"], {"interval_s": 60}, "deployment daily is unknown"),
        (["nightly"], {"interval_s": 60}, r"problems\.path is unset"),
    ],
)
def test_serving_refuses_a_schedule_that_cannot_be(
    scheduled: list[str], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        serve(scheduled, **options)


def test_serving_needs_a_server_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ConfigError, match=r"prefect server start.*PREFECT_API_URL"),
    ):
        serve(["train"], interval_s=60)


HOLD = """
import asyncio, datetime, sys, uuid
from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage

async def hold():
    storage, ttl = get_concurrency_lease_storage(), datetime.timedelta(seconds=300)
    if len(sys.argv) > 1:
        print(await storage.renew_lease(uuid.UUID(sys.argv[1]), ttl))
    else:
        print((await storage.create_lease([uuid.uuid4()], ttl)).id)

asyncio.run(hold())
"""


def test_a_server_with_the_documented_variables_still_knows_leases_when_started_again(
    tmp_path: Path,
) -> None:
    page = (HELD_OUT.parents[1] / "deployments.md").read_text()
    variables = dict(re.findall(r"\b(\w+_LEASE_STORAGE)=(\S+)", page))
    environment = {**os.environ, **variables, "PREFECT_HOME": str(tmp_path)}

    def server(*arguments: str) -> str:
        command = [sys.executable, "-c", HOLD, *arguments]
        return subprocess.check_output(command, env=environment, text=True).strip()

    assert variables
    assert server(server()) == "True"
