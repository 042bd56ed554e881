"""A small training whose turns a real vLLM server samples."""

from pathlib import Path

import polars as pl
import pytest
from small_runs import SMALL, Cli, sets

from storage import Store
from tests.stages.rollout.with_vllm.vllm_environment import PYTHON, needs_vllm

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SERVED = (
    "rollout.engine=vllm",
    f"vllm.python={PYTHON}",
    "policy.hidden_size=64",  # heads of 32, the smallest that vLLM knows on a CPU
    "rollout.temperature=0.9",
    "rollout.top_p=0.95",
)


@needs_vllm
def test_training_with_vllm_optimises_what_was_sampled(cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "store"
    options = sets(*SMALL, *SERVED)
    done = cli.run("train", "--store", str(store), "--run", "small", *options, timeout_s=800)
    assert done.returncode == 0, done.stderr
    opened = Store.open(str(store))
    outputs = [manifest.output(uri) for uri, manifest in opened.results("small")]
    tables = [ref for output in outputs for ref in output.tables.values()]
    turns = pl.concat(opened.read(ref) for ref in tables if ref.name == "turns")
    assert {0, 1} <= set(turns["policy_version"])
    times = pl.concat(opened.read(ref) for ref in tables if ref.name == "generation_times")
    assert times["cached_tokens"].null_count() == 0
    assert (times["cached_tokens"] < times["prompt_tokens"]).all()
    first_steps = [
        opened.read(ref).filter(step=0) for ref in tables if ref.name == "updates" and ref.rows
    ]
    # Before the first step the trainer's probabilities are those that were sampled from.
    assert first_steps
    for step in first_steps:
        assert step["ratio_max"].item() == pytest.approx(1.0, abs=1e-3)
        assert step["kl"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_missing_environment_is_told_before_anything_is_made(cli: Cli, tmp_path: Path) -> None:
    done = cli.run(
        *("train", "--store", str(tmp_path / "store")),
        *sets("rollout.engine=vllm", "vllm.python=nowhere/python"),
    )
    assert done.returncode != 0
    assert "nowhere/python is no program: `make vllm` builds" in " ".join(done.stderr.split())
    assert not (tmp_path / "store").exists()
