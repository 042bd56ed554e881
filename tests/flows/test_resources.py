"""What is made once a process, and on which thread it works."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flows.resources import forward_beside, on_torch_thread
from schemas.config import ComputeConfig
from storage.checkpoints import save_policy
from tests.stages.rollout.rollout_policies import letters_tokenizer, random_model

COMPUTE = ComputeConfig(threads=1)


def test_weights_are_checked_while_the_optimiser_works(tmp_path: Path) -> None:
    save_policy(tmp_path, random_model("llama"), letters_tokenizer(), None)
    is_checked = threading.Event()
    with ThreadPoolExecutor(1) as optimiser:
        work = optimiser.submit(on_torch_thread, COMPUTE, lambda: is_checked.wait(120))
        (logprobs,) = forward_beside(COMPUTE)(str(tmp_path), [[1, 2]], [[3, 4]])
        is_checked.set()
        assert work.result()  # it was at work all the time
    assert len(logprobs) == 2
