"""The vLLM engine: samples from a server in a process of its own, over HTTP.

Each row is a request with its own seed, and the server batches whatever is in flight, of all calls
together. A server that crashes or hangs is started again with the same policy, and rows without a
result are sampled again: their seeds give them the same tokens.

It does not train, does not decode text, and keeps no tokens.
"""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from schemas.config import VllmConfig
from schemas.errors import EngineError, PolicyError
from stages.rollout.concurrency import EventLoop, Gate
from stages.rollout.engine import Capabilities, Generations, Requests
from stages.rollout.vllm_client import Row, ServerLost, VllmClient
from stages.rollout.vllm_release import head_size
from stages.rollout.vllm_server import release_of, server_of
from stages.rollout.weight_check import Forward, WeightCheck, check_weights, probe_requests

_SHAPE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "n_embd", "n_layer", "n_head"),
)
"""Numbers of a config.json in which two policies of one architecture agree."""
_LAST_WORDS_S = 10.0
"""How long a server whose engine failed may take to end, so that its log tells why."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policy:
    """A stored policy."""

    folder: str
    version: int
    shape: dict[str, Any]  # of its config.json
    tokenizer: str  # digest
    vocabulary: int

    @classmethod
    def of(cls, folder: str, version: int) -> "_Policy":
        at = Path(os.path.abspath(folder))
        try:
            config = json.loads((at / "config.json").read_bytes())
            text = config.get("text_config", config)
            vocabulary = int(text["vocab_size"])
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise PolicyError(f"{at} is no model folder: no config.json with vocab_size") from error
        # A server that was told to load what is not there loses the weights that it has.
        if not [*at.glob("*.safetensors"), *at.glob("*.bin")]:
            raise PolicyError(f"{at} holds no weights")
        tokenizer = at / "tokenizer.json"
        written = tokenizer.read_bytes() if tokenizer.is_file() else b""
        return cls(
            folder=str(at),
            version=version,
            shape={
                **{key: text[key] for key in _SHAPE if key in text},
                "architectures": config.get("architectures"),
            },
            tokenizer=hashlib.sha256(written).hexdigest(),
            vocabulary=vocabulary,
        )

    def is_like(self, other: "_Policy | None") -> bool:
        """Says whether a server of the other policy can load this one's weights."""
        mine = (self.shape, self.tokenizer)
        return other is not None and mine == (other.shape, other.tokenizer)


@dataclass(slots=True, kw_only=True, eq=False)
class _Session:
    """The server as it answers from one start to the next."""

    client: VllmClient
    max_context_tokens: int = 0
    lost: "asyncio.Future[ServerLost]" = field(default_factory=asyncio.Future)
    calls: int = 0  # in flight


class VllmEngine:
    """Samples from one policy at a time on a vLLM server."""

    capabilities = Capabilities(live_weights=True, prefix_cache=True)

    def __init__(self, config: VllmConfig, *, forward: Forward) -> None:
        """Prepares the engine; the server is started for the first policy.

        Args:
            config: Which server, and its limits.
            forward: The trainer's forward pass, to check the server's weights against.
        """
        self._config = config
        self._forward = forward
        self._server = server_of(config)
        self._closing = threading.Event()
        self._loop = EventLoop(self._closing)
        self._gate = Gate()
        self._recovering = threading.Lock()
        self._session: _Session | None = None
        self._clients: list[VllmClient] = []
        self._policy: _Policy | None = None
        self._started_with: _Policy | None = None
        self._restarts_left = 0
        self._broken: str | None = None
        self.last_check: WeightCheck | None = None
        """What the last check of the weights measured."""

    @property
    def policy_version(self) -> int:
        """Version of the policy that samples."""
        return self._held().version

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of a context with its continuation."""
        self._held()
        return self._answering().max_context_tokens

    def generate(self, requests: Requests) -> Generations:
        """Samples a continuation of every context; calls of several threads are batched together.

        Raises:
            EngineError: If the server failed and could not be brought back, or refuses a request.
            PolicyError: If the policy yields no numbers.
        """
        with self._gate.shared():
            policy = self._held()
            rows: dict[int, Row] = {}
            while len(rows) < len(requests.contexts):
                session = self._answering()
                lost = self._run(self._fill(session, requests, rows))
                if lost is not None:
                    self._recover(session, lost)
        return _generations(rows, policy.version)

    def update_weights(self, folder: str, policy_version: int) -> None:
        """Samples from another policy from now on, and checks that it does.

        A server of ours that holds none, or one of another architecture, is started. The prefix
        cache is emptied: what it holds was computed with the old weights.

        Raises:
            PolicyError: If the folder holds no policy, or one that yields no numbers.
            EngineError: If the server does not start, serves another architecture and is not ours,
                or samples from other weights.
        """
        policy = _Policy.of(folder, policy_version)
        with self._gate.alone():
            self._policy, self._broken = None, None
            self._restarts_left = self._config.restarts
            session = self._session if self._server.end() is None else None
            if self._server.is_ours and not policy.is_like(self._started_with):
                session = None
            self._session = None
            self._session = self._hold(policy, session)
            self._policy = policy

    def close(self) -> None:
        """Ends a server of ours; the engine then holds no policy.

        Calls of other threads are not waited for, not even one that starts a server: they fail.
        """
        self._closing.set()
        self._server.stop()
        self._loop.cancel_all()
        with self._gate.alone():
            self._closing.clear()
            self._policy = None
            self._server.stop()
            self._session = None
            for client in self._clients:
                self._loop.run(client.close())
            self._clients.clear()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work on the event loop, unless the engine is closed meanwhile."""
        try:
            return self._loop.run(work)
        except CancelledError as error:
            raise EngineError(f"{self._server.name} was given up: its engine was closed") from error

    def _held(self) -> _Policy:
        if self._policy is None:
            raise EngineError(f"{self._server.name} holds no policy: update_weights comes first")
        return self._policy

    def _answering(self) -> _Session:
        if self._session is None:
            raise EngineError(f"{self._server.name} was not started")
        return self._session

    async def _fill(
        self, session: _Session, requests: Requests, rows: dict[int, Row]
    ) -> ServerLost | None:
        """Samples the rows that are missing; returns why the server was lost, if it was."""

        async def fill(row: int) -> None:
            rows[row] = await session.client.complete(requests, row)

        session.calls += 1
        tasks = [
            asyncio.create_task(fill(row))
            for row in range(len(requests.contexts))
            if row not in rows
        ]
        work = asyncio.gather(*tasks)
        watch = asyncio.create_task(session.client.watch(self._config.silence_time_s))
        try:
            await asyncio.wait((work, watch, session.lost), return_when=asyncio.FIRST_COMPLETED)
            for finished in (work, watch):
                if finished.done():
                    await finished
        except ServerLost as lost:
            # The first to notice tells all calls: none is to be in flight during a restart.
            if not session.lost.done():
                session.lost.set_result(lost)
        finally:
            for task in (*tasks, watch):
                task.cancel()
            await asyncio.gather(*tasks, work, watch, return_exceptions=True)
            session.calls -= 1
        return session.lost.result() if session.lost.done() else None

    def _recover(self, session: _Session, lost: ServerLost) -> None:
        """Brings the server back with the policy it had; one call does so for all."""
        with self._recovering:
            if self._broken is not None:
                raise EngineError(self._broken)
            if session is not self._session:
                return
            self._run(_calls_left(session))
            try:
                self._count_restart(lost)
                self._session = self._hold(self._held(), None)
            except (EngineError, PolicyError) as error:
                self._broken = str(error)
                raise

    def _hold(self, policy: _Policy, session: _Session | None) -> _Session:
        """Makes the server hold a policy; returns the session in which it does.

        Args:
            policy: What it has to hold.
            session: As the server answers now; null to start it.
        """
        while True:
            started = session is None
            try:
                if session is None:
                    session = self._start(policy)
                if not (started and self._server.is_ours):
                    time_s = self._config.start_time_s
                    self._run(session.client.load_weights(policy.folder, time_s=time_s))
                self._check(session, policy)
            except ServerLost as lost:
                if started:
                    # A server that was just started and fails at its first requests fails again.
                    raise EngineError(f"{self._server.name} failed: {self._why(lost)}") from lost
                self._count_restart(lost)
                session = None
            else:
                return session

    def _start(self, policy: _Policy) -> _Session:
        release_of(self._config).refuse_heads(head_size(policy.folder))
        self._server.start(policy.folder, self._closing)
        session = self._run(self._open(policy))
        self._clients.append(session.client)
        self._started_with = policy
        session.max_context_tokens = self._run(session.client.find_model())
        served = self._run(session.client.served_policy())
        expected = {
            **policy.shape,
            "dtype": self._config.dtype,
            "logprobs_mode": "processed_logprobs",
        }
        for key, value in expected.items():
            if served.get(key) != value:
                raise EngineError(
                    f"{self._server.name} has {key} {served.get(key)}, not {value} as it must for "
                    f"{policy.folder}: start it as docs/engines.md says, with a policy of this run"
                )
        return session

    async def _open(self, policy: _Policy) -> _Session:
        client = VllmClient(
            self._server.url,
            self._server.headers,
            name=self._server.name,
            vocabulary=policy.vocabulary,
            request_time_s=self._config.request_time_s,
            answer_time_s=self._config.silence_time_s,
        )
        return _Session(client=client)

    def _check(self, session: _Session, policy: _Policy) -> None:
        probes = probe_requests(
            vocabulary=policy.vocabulary, max_context_tokens=session.max_context_tokens
        )

        def sample(requests: Requests) -> Generations:
            rows: dict[int, Row] = {}
            lost = self._run(self._fill(session, requests, rows))
            if lost is not None:
                raise lost
            return _generations(rows, policy.version)

        self.last_check = check_weights(
            sample,
            probes,
            folder=policy.folder,
            dtype=self._config.dtype,
            forward=self._forward,
            name=self._server.name,
        )

    def _count_restart(self, lost: ServerLost) -> None:
        if self._restarts_left == 0:
            raise EngineError(
                f"{self._server.name} failed once more than vllm.restarts={self._config.restarts} "
                f"allows: {self._why(lost)}"
            ) from lost
        self._restarts_left -= 1

    def _why(self, lost: ServerLost) -> str:
        end = self._server.end(wait_s=_LAST_WORDS_S)
        return str(lost) if end is None else end


def _generations(rows: Mapping[int, Row], policy_version: int) -> Generations:
    ordered = [rows[row] for row in range(len(rows))]
    cached = [row.cached_tokens for row in ordered if row.cached_tokens is not None]
    return Generations(
        token_ids=[row.token_ids for row in ordered],
        logprobs=[row.logprobs for row in ordered],
        stopped=[row.stopped for row in ordered],
        policy_version=policy_version,
        cached_tokens=cached if len(cached) == len(ordered) else None,
    )


async def _calls_left(session: _Session) -> None:
    """Waits until no call is in flight; all were told that the server is lost."""
    while session.calls:
        await asyncio.sleep(0.01)
