"""What the tests of the cold start share: one draw of demonstrations, one tokenizer."""

from collections.abc import Iterator

import dataframely as dy
import pytest
import torch

from schemas.cold_start import ColdStartConfig
from schemas.cold_start_tables import Demonstrations
from schemas.config import ExecutionConfig
from stages.cold_start.demonstrations import make_demonstrations
from stages.cold_start.tiny_policy import make_tokenizer
from stages.dialogue.tags import TAGS, TagDialogue
from tests.stages.cold_start.cold_start_builders import LEVELS, SMALL_POLICY


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order: with one thread, results repeat bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def demonstrations() -> dy.DataFrame[Demonstrations]:
    config = ColdStartConfig(demonstrations=4_000)
    return make_demonstrations(config, ExecutionConfig(), levels=LEVELS, seed=11)


@pytest.fixture(scope="session")
def demonstrated_texts(demonstrations: dy.DataFrame[Demonstrations]) -> list[str]:
    """Text of some transcripts, without tags."""
    texts = [" ".join(part["text"] for part in parts) for parts in demonstrations["segments"][:300]]
    for tag in TAGS:
        texts = [text.replace(tag, " ") for text in texts]
    return texts


@pytest.fixture(scope="session")
def dialogue(demonstrated_texts: list[str]) -> TagDialogue:
    return TagDialogue(make_tokenizer(demonstrated_texts, SMALL_POLICY))
