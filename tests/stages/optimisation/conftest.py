import pytest
import torch

from tests.stages.rollout.rollout_policies import Policy, started_policy


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def policy() -> Policy:
    return started_policy()
