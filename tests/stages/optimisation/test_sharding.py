"""FSDP2 on two gloo processes, gradients in double precision."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt2"])
def test_blocks_that_are_sharded_have_the_gradient_of_one_process(architecture: str) -> None:
    run_on_two(architecture, "by_block")


@pytest.mark.parametrize("architecture", ["qwen3", "mamba"])
def test_a_model_put_together_once_a_step_has_it_too(architecture: str) -> None:
    run_on_two(architecture, "whole")


def run_on_two(*arguments: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2"),
            *("-m", "tests.stages.optimisation.sharded_gradients", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
