"""What is refused before a flow is started, and what the record of a run says of its end."""

import asyncio
from pathlib import Path

import pytest
from prefect.exceptions import TerminationSignal
from transformers import MistralConfig

from flows.sessions import check_inputs, session
from schemas.config import RunConfig
from schemas.config_text import parse_config
from schemas.errors import PolicyError
from storage import Store


def test_a_policy_that_the_engine_cannot_sample_from_is_told_before_the_cold_start(
    tmp_path: Path,
) -> None:
    MistralConfig(sliding_window=512, max_position_embeddings=2_048).save_pretrained(tmp_path)
    config = parse_config(overrides=[f"policy.path={tmp_path}"])
    with pytest.raises(PolicyError, match=r"attend to 512 tokens .* of 2048"):
        check_inputs(config, None, runs_code=False)
    check_inputs(config, None, runs_code=False, samples=False)


@pytest.mark.parametrize(
    "interrupt", [KeyboardInterrupt(), TerminationSignal(15), asyncio.CancelledError()]
)
def test_what_ends_a_flow_from_outside_is_no_failure_of_its_run(
    tmp_path: Path, interrupt: BaseException
) -> None:
    store = Store.open(tmp_path / "store", create=True)
    with pytest.raises(type(interrupt)), session(store, "small", RunConfig()):
        raise interrupt
    assert store.run_record("small").status == "interrupted"
