"""Talks to a vLLM server over HTTP: token ids and log-probabilities in and out, and new weights.

What the server answers is checked, not believed: an engine that drops a token or answers in text
would make the ratios of the optimiser wrong without anybody noticing.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import EngineError, PolicyError
from stages.rollout.engine import Requests

MAX_IN_FLIGHT = 512
"""Requests that are with the server at a time; more wait here. Each needs a file descriptor."""
_RESET_TRIES = 20
_RESET_PAUSE_S = 0.25
_HEALTH_PAUSE_S = 1.0
_UNWELL_TIMES = 3
"""How often in a row a server that loads weights says that it is unwell until that is believed."""
DIVERGED = "the policy yields no finite log-probabilities: its weights diverged"
_NO_NUMBER = "float values are not JSON compliant"
"""How vLLM refuses to answer with what is no number."""
_ROUNDING = 1e-4
"""How far above 0 a log-probability may come out."""
_METRIC = re.compile(r"^(vllm:\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_PROGRESS = ("vllm:iteration_tokens_total_count", "vllm:iteration_tokens_total_sum")


T = TypeVar("T", bound="_Answer")


class ServerLost(Exception):
    """The server did not answer as one that is well; it may once it was started again."""


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)


class _Logprobs(_Answer):
    token_logprobs: list[float]


class _Choice(_Answer):
    token_ids: list[int]
    prompt_token_ids: list[int]
    logprobs: _Logprobs
    finish_reason: str


class _PromptTokens(_Answer):
    cached_tokens: int | None = None


class _Usage(_Answer):
    prompt_tokens_details: _PromptTokens | None = None


class _Completion(_Answer):
    choices: list[_Choice]
    usage: _Usage


class _Model(_Answer):
    id: str
    max_model_len: int = Field(ge=1)


class _Models(_Answer):
    data: list[_Model] = Field(min_length=1)


class _Complaint(_Answer):
    message: str


class _Refusal(_Answer):
    error: _Complaint


class _Success(_Answer):
    success: bool


class _Report(_Answer):
    results: list[dict[str, Any]] = Field(min_length=1)


class Row(BaseModel):
    """What was sampled for one request."""

    model_config = ConfigDict(frozen=True)

    token_ids: list[int]
    logprobs: list[float]
    stopped: bool
    cached_tokens: int | None
    """Tokens of the context that were not computed again; null if the server does not say."""


class VllmClient:
    """Speaks to one server; used on one event loop."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        name: str,
        vocabulary: int,
        request_time_s: float,
        answer_time_s: float,
    ) -> None:
        """Prepares the connections.

        Args:
            url: Address of the server, without a slash at its end.
            headers: What lets a request in.
            name: What errors call the server.
            vocabulary: Tokens of the policy.
            request_time_s: How long a completion may take.
            answer_time_s: How long all else may take but the loading of weights.
        """
        self._name = name
        self._answer_time_s = answer_time_s
        self._request_time_s = request_time_s
        self._vocabulary = vocabulary
        self._model = ""
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            # How long a whole answer takes is bounded where it is asked for.
            timeout=httpx.Timeout(None, connect=10.0),
            # Shorter than the server's 5 s, so that it never hangs up on a connection in use.
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=MAX_IN_FLIGHT,
                keepalive_expiry=2.0,
            ),
            trust_env=False,
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def find_model(self) -> int:
        """Asks what the server serves; returns the most tokens of a context and continuation."""
        answer = _parsed(_Models, await self._get("/v1/models"), self._name)
        self._model = answer.data[0].id
        return answer.data[0].max_model_len

    async def complete(self, requests: Requests, row: int) -> Row:
        """Samples one row.

        Raises:
            ServerLost: If the server is gone or unwell.
            EngineError: If it refuses the request or answers something else.
            PolicyError: If the policy yields no numbers.
        """
        body = self._completion(requests, row)
        async with self._room:
            response = await self._post("/v1/completions", body, time_s=self._request_time_s)
        found = _row(_parsed(_Completion, response, self._name), requests, row, self._name)
        if not all(0 <= token < self._vocabulary for token in found.token_ids):
            raise EngineError(f"{self._name} answers tokens that the policy does not have")
        return found

    def _completion(self, requests: Requests, row: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": requests.contexts[row],
            "max_tokens": int(requests.max_new_tokens[row]),
            "seed": int(requests.seeds[row]),
            "temperature": requests.temperature,
            "top_p": requests.top_p,
            "top_k": requests.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # The model's own end of text only ends a row where the request says so.
            "ignore_eos": True,
            "stop_token_ids": list(requests.stop_ids),
            "stop": list(requests.stop_strings),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }

    async def load_weights(self, folder: str, *, time_s: float) -> None:
        """Replaces the weights by those of a folder, and forgets what the old ones had cached.

        Args:
            folder: Where the server finds them.
            time_s: How long the loading may take.

        Raises:
            ServerLost: If the server is gone or unwell, or takes longer.
            EngineError: If it refuses, or does not empty its cache.
        """
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        loading = asyncio.create_task(self._post("/collective_rpc", body, time_s=time_s))
        # Where the model's process dies, the server never answers the call that waits for it.
        unwell = asyncio.create_task(self._unwell())
        try:
            await asyncio.wait((loading, unwell), return_when=asyncio.FIRST_COMPLETED)
            await (loading if loading.done() else unwell)
        finally:
            loading.cancel()
            unwell.cancel()
            await asyncio.gather(loading, unwell, return_exceptions=True)
        for _ in range(_RESET_TRIES):
            answer = await self._post("/reset_prefix_cache", None)
            if _parsed(_Success, answer, self._name).success:
                return
            await asyncio.sleep(_RESET_PAUSE_S)  # requests that were given up are still leaving
        raise EngineError(f"{self._name} did not reset its prefix cache: is it in other use?")

    async def served_policy(self) -> dict[str, Any]:
        """Returns what the workers report of their model.

        Raises:
            EngineError: If the server does not know the method.
        """
        response = await self._asked("POST", "/collective_rpc", {"method": "served_policy"})
        if not response.is_success:
            raise EngineError(
                f"{self._name} has no development calls of ours (status {response.status_code}): "
                "start it as docs/engines.md says"
            )
        return _parsed(_Report, response, self._name).results[0]

    async def metrics(self) -> dict[str, float]:
        """Returns the server's counters by name, summed over engines."""
        totals: dict[str, float] = {}
        written = _METRIC.findall((await self._get("/metrics")).text)
        try:
            counted = [(name, float(value)) for name, value in written]
        except ValueError as error:
            raise EngineError(f"{self._name} counts in no numbers: {error}") from error
        for name, value in counted:
            totals[name] = totals.get(name, 0.0) + value
        return totals

    async def watch(self, silence_time_s: float) -> None:
        """Returns never; raises when the server has computed nothing for some time.

        Raises:
            ServerLost: If so.
        """
        clock = asyncio.get_running_loop().time
        pause = min(5.0, silence_time_s / 4)
        done, since = -1.0, clock()
        while True:
            try:
                async with asyncio.timeout(pause):
                    counted = await self.metrics()
                now = sum(counted.get(name, 0.0) for name in _PROGRESS)
            except (ServerLost, TimeoutError):
                now = done  # says nothing, as one that hangs; a lost connection the rows notice
            if now != done:
                done, since = now, clock()
            elif clock() - since > silence_time_s:
                raise ServerLost(f"it computed nothing for {silence_time_s:g} s")
            await asyncio.sleep(pause)

    async def _unwell(self) -> None:
        """Returns never; raises when the server says that it is unwell, or is gone."""
        times = 0
        while True:
            await asyncio.sleep(_HEALTH_PAUSE_S)
            try:
                await self._get("/health")
            except ServerLost:
                times += 1
                if times == _UNWELL_TIMES:
                    raise
            else:
                times = 0

    async def _get(self, path: str) -> httpx.Response:
        return self._well(await self._asked("GET", path))

    async def _post(
        self, path: str, body: dict[str, Any] | None, *, time_s: float | None = None
    ) -> httpx.Response:
        return self._well(await self._asked("POST", path, body, time_s=time_s))

    async def _asked(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        time_s: float | None = None,
    ) -> httpx.Response:
        limit_s = self._answer_time_s if time_s is None else time_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._http.request(method, path, json=body)
        except TimeoutError as error:
            raise ServerLost(f"no whole answer within {limit_s:g} s at {path}") from error
        except httpx.RequestError as error:
            raise ServerLost(_told(error, path)) from error

    def _well(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        said = _message(response)
        if response.status_code in (401, 403):
            raise EngineError(f"{self._name} does not take the key: {said}")
        if response.is_server_error:
            raise ServerLost(f"it answered {response.status_code}: {said}")
        if _NO_NUMBER in said:
            raise PolicyError(DIVERGED)
        raise EngineError(f"{self._name} refuses a request ({response.status_code}): {said}")


def _row(answer: _Completion, requests: Requests, row: int, name: str) -> Row:
    """Checks a completion against its request.

    Raises:
        EngineError: If it cannot be an answer to it.
        PolicyError: If its numbers are not finite.
    """
    choice = answer.choices[0] if len(answer.choices) == 1 else None
    tokens = choice.token_ids if choice is not None else []
    limit = int(requests.max_new_tokens[row])
    if (
        choice is None
        or choice.prompt_token_ids != requests.contexts[row]
        or len(choice.logprobs.token_logprobs) != len(tokens)
        or not 1 <= len(tokens) <= limit
        or choice.finish_reason not in ("stop", "length")
        or (choice.finish_reason == "length" and len(tokens) != limit)
        or (choice.finish_reason == "stop" and not _may_stop(tokens, requests))
    ):
        raise EngineError(f"{name} answers what is no completion of the request")
    logprobs = choice.logprobs.token_logprobs
    if not all(map(math.isfinite, logprobs)):
        raise PolicyError(DIVERGED)
    if max(logprobs) > _ROUNDING:
        raise EngineError(f"{name} answers log-probabilities above 0")
    details = answer.usage.prompt_tokens_details
    return Row(
        token_ids=tokens,
        logprobs=[min(p, 0.0) for p in logprobs],
        stopped=choice.finish_reason == "stop",
        cached_tokens=None if details is None else details.cached_tokens,
    )


def _may_stop(tokens: list[int], requests: Requests) -> bool:
    """Says whether a row may end there; in which token a text ends only a tokenizer knows."""
    return bool(requests.stop_strings) or tokens[-1] in requests.stop_ids


def _parsed(kind: type[T], response: httpx.Response, name: str) -> T:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise EngineError(
            f"{name} answers no {kind.__name__.strip('_').lower()} of a vLLM that is known here: "
            f"{key + ': ' if key else ''}{first['msg']}"
        ) from error


def _told(error: httpx.RequestError, path: str) -> str:
    said = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"{said} at {path}"


def _message(response: httpx.Response) -> str:
    """Returns what an error response says, in one line."""
    try:
        said = _Refusal.model_validate_json(response.content).error.message
    except ValidationError:
        said = response.text
    return " ".join(said.split())[:300]
