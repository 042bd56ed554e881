"""Engines, dialogues and executors, made once a process and only when a stage really runs.

A stage run that finds its stored result loads no model and starts no sandbox.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch

from flows.binding import open_store
from flows.policy_server import PolicyServer
from flows.task_inputs import Sampling
from schemas.config import ComputeConfig, DialogueFormat, ExecutionConfig
from schemas.refs import CheckpointRef, Ref
from stages.dialogue import Dialogue, make_dialogue
from stages.execution import Executor, make_executor
from stages.rollout import Engine
from stages.rollout.transformers_engine import TransformersEngine
from stages.rollout.weight_check import Forward, forward_logprobs
from storage.checkpoints import end_ids, load_policy, load_tokenizer
from storage.embeddings import EmbeddingModel, load_embedding_model

T = TypeVar("T")

_torch_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch")
_check_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weight-check")
_making = threading.Lock()
_server = PolicyServer()


def on_torch_thread(compute: ComputeConfig, work: Callable[[], T]) -> T:
    """Runs work on the one thread that uses torch, and waits for it.

    Every thread that calls torch gets a pool of its own; with one caller there is one pool, and
    shards that generate at the same time take turns instead of slowing each other.
    """
    return _with_threads(_torch_thread, compute, work)


def _with_threads(executor: ThreadPoolExecutor, compute: ComputeConfig, work: Callable[[], T]) -> T:
    def run() -> T:
        if torch.get_num_threads() != compute.threads:
            torch.set_num_threads(compute.threads)
        return work()

    return executor.submit(run).result()


@contextmanager
def engine_of(store: str, policy: CheckpointRef, sampling: Sampling) -> Iterator[Engine]:
    """Yields an engine that samples from a stored policy."""
    compute = sampling.compute
    if sampling.config.engine == "transformers":
        with _making:
            embedded = _engine(store, policy, compute.device, compute.cache_mib)
        yield embedded
        return

    folder = open_store(store).path(policy)
    with _server.lend(
        sampling.vllm,
        folder=str(folder),
        policy=policy.digest,
        version=policy.policy_version,
        forward=forward_beside(compute),
    ) as engine:
        yield engine


def server_given_up_on_interrupt() -> AbstractContextManager[None]:
    """Returns a block that ends the vLLM server when it is interrupted, for the body of a flow."""
    return _server.given_up_on_interrupt()


def forward_beside(compute: ComputeConfig) -> Forward:
    """Returns the trainer's forward pass for the check of a server's weights.

    It runs beside the thread that uses torch, not on it: there a rollout that goes on while the
    optimiser works would wait for the optimiser with its first turn.
    """

    def forward(
        folder: str, contexts: Sequence[list[int]], tokens: Sequence[list[int]]
    ) -> list[list[float]]:
        return _with_threads(
            _check_thread,
            compute,
            lambda: forward_logprobs(load_policy(folder)[0], contexts, tokens),
        )

    return forward


def embedding_of(model: Ref, compute: ComputeConfig) -> EmbeddingModel:
    """Returns the embedding model of a folder."""
    with _making:
        return _embedding(model.uri, model.content, compute.device)


def executor_of(config: ExecutionConfig) -> Executor:
    """Returns the executor of a configuration, probed when it is first made."""
    with _making:
        return _executor(config)


def try_executor(config: ExecutionConfig) -> None:
    """Makes the executor of a run before its first stage.

    Raises:
        ExecutorError: If it cannot be used.
    """
    if config.backend == "unsafe_local":
        _executor.cache_clear()  # it warns when it is made, which is to be seen on every run
    executor_of(config)


@lru_cache(maxsize=2)
def _engine(store: str, policy: CheckpointRef, device: str, cache_mib: int) -> TransformersEngine:
    model, tokenizer = load_policy(open_store(store).path(policy), device=device)
    return TransformersEngine(
        model, tokenizer, policy_version=policy.policy_version, cache_mib=cache_mib
    )


@lru_cache(maxsize=1)
def _embedding(path: str, content: str, device: str) -> EmbeddingModel:
    # The content counts: another model may have come to the same place.
    return load_embedding_model(Path(path), device=device)


@lru_cache(maxsize=2)
def _executor(config: ExecutionConfig) -> Executor:
    return make_executor(config)


@lru_cache(maxsize=2)
def dialogue_of(store: str, policy: CheckpointRef, name: DialogueFormat) -> Dialogue:
    """Returns a dialogue format for a stored policy's tokenizer."""
    folder = open_store(store).path(policy)
    return make_dialogue(name, load_tokenizer(folder), end_ids=end_ids(folder))
