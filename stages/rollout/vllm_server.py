"""The vLLM server: a process that is started, watched and stopped here, or one that runs already.

The process belongs to this one. It listens on the loopback address, lets in only who has the key
made for it, and a keeper ends it however this process ends.
"""

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import ValidationError

from schemas.config import VllmConfig
from schemas.errors import EngineError
from stages.kept_process import KeptProcess
from stages.rollout.vllm_release import EXTENSION, Release, installed_release

KEY_VARIABLE = "TURNLEDGER_VLLM_API_KEY"
"""Environment variable with the key of a server that runs already."""
SERVED_NAME = "policy"
_PORT_TRIES = 5
_HEALTH_EVERY_S = 0.25
_ANSWER_TIME_S = 5.0
"""How long a server may take to say whether it is well, or which vLLM it is."""
_SAYS_NOTHING = ("EngineDeadError", "EngineCore encountered an issue", "initialization failed")
"""Parts of errors in the server's log that only follow from another one."""


class Server(Protocol):
    """Where the engine sends its requests."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def url(self) -> str:
        """Address, without a slash at its end."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What lets a request in."""

    @property
    def is_ours(self) -> bool:
        """Whether it can be started with another policy."""

    def start(self, folder: str, given_up: threading.Event) -> None:
        """Makes it answer; a server of ours starts afresh, with the policy of a folder.

        Args:
            folder: Of the policy.
            given_up: Set by who does not want it any more; it is waited for no longer then.

        Raises:
            EngineError: If it does not answer in time, or was given up.
        """

    def stop(self) -> None:
        """Ends a server of ours with all its processes, also one that is being started."""

    def end(self, *, wait_s: float = 0.0) -> str | None:
        """Says how a server of ours ended; null while it runs, or if it is not ours.

        Args:
            wait_s: How long to wait for its end.
        """


def server_of(config: VllmConfig) -> Server:
    """Returns the server of a configuration; nothing is started yet."""
    return ServerProcess(config) if config.url is None else GivenServer(config)


def release_of(config: VllmConfig) -> Release:
    """Returns which vLLM samples, asked once a process; none is started.

    Raises:
        EngineError: If there is no such python, it has no vLLM, or no server is at the address.
    """
    return installed_release(config.python) if config.url is None else _given_release(config)


@lru_cache
def _given_release(config: VllmConfig) -> Release:
    return GivenServer(config).release()


class GivenServer:
    """A server that somebody else runs."""

    is_ours = False

    def __init__(self, config: VllmConfig) -> None:
        if config.url is None:
            raise ValueError("a given server needs an address")
        self._config = config
        self.url = config.url.rstrip("/")
        self.name = f"the vLLM server at {self.url}"
        key = os.environ.get(KEY_VARIABLE)
        self.headers: Mapping[str, str] = {} if key is None else _bearer(key)

    def start(self, folder: str, given_up: threading.Event) -> None:
        """Waits until it answers; which policy it holds is not looked at."""
        deadline = time.monotonic() + self._config.start_time_s
        while (status := health(self.url, self.headers)) != httpx.codes.OK:
            self._refuse_missing_key(status)
            if time.monotonic() > deadline:
                told = "does not answer" if status is None else f"answers {status} at /health"
                raise EngineError(
                    f"{self.name} {told} for {self._config.start_time_s:g} s: look whether it runs"
                )
            if given_up.wait(_HEALTH_EVERY_S):
                raise EngineError(f"{self.name} was given up before it answered")

    def release(self) -> Release:
        """Asks which vLLM it is.

        Raises:
            EngineError: If it does not say.
        """
        try:
            response = _answer(f"{self.url}/version", self.headers)
        except httpx.RequestError as error:
            raise EngineError(f"{self.name} does not answer: look whether it runs") from error
        self._refuse_missing_key(response.status_code)
        try:
            told = Release.model_validate_json(response.content)
            return Release(version=told.version.partition("+")[0])
        except ValidationError as error:
            raise EngineError(
                f"{self.name} does not tell its version (status {response.status_code} at "
                "/version): is it one?"
            ) from error

    def _refuse_missing_key(self, status: int | None) -> None:
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise EngineError(f"{self.name} does not take the key: put it into {KEY_VARIABLE}")

    def stop(self) -> None:
        """Does nothing: it is not ours."""

    def end(self, *, wait_s: float = 0.0) -> str | None:
        """Returns null: nothing is known of its process."""
        return None


class ServerProcess:
    """A server of our own."""

    is_ours = True
    name = "the vLLM server"

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._key = secrets.token_hex(32)
        self.headers: Mapping[str, str] = _bearer(self._key)
        self.url = ""
        self._running: _Running | None = None
        self._stopping = threading.Lock()

    def start(self, folder: str, given_up: threading.Event) -> None:
        """Starts it with a policy, after ending one that runs.

        Raises:
            EngineError: If it was given up, ends, or does not answer in time, with the reason from
                its log.
        """
        for _ in range(_PORT_TRIES):
            self.stop()
            port = _free_port()
            self.url = f"http://127.0.0.1:{port}"
            self._running = running = _Running(self._config, self._key, port, folder)
            answers = self._answers(running, given_up)
            if given_up.is_set():
                self.stop()
                raise EngineError(f"{self.name} was given up before it answered")
            if answers:
                return
            # Somebody may take the port between our look and the server's.
            if not running.lost_its_port():
                break
        why = (
            self.end()
            or f"it did not answer within vllm.start_time_s={self._config.start_time_s:g}"
        )
        kept = running.keep_log()
        self.stop()
        raise EngineError(f"{self.name} did not start: {why}; its log: {kept}")

    def _answers(self, running: "_Running", given_up: threading.Event) -> bool:
        deadline = time.monotonic() + self._config.start_time_s
        while time.monotonic() < deadline and running.end() is None:
            # Another program may answer at a port that ours lost; it does not live on with ours.
            is_well = health(self.url, self.headers) == httpx.codes.OK
            if is_well and running.end() is None:
                return True
            if given_up.wait(_HEALTH_EVERY_S):
                break
        return False

    def stop(self) -> None:
        """Ends all its processes; the next start begins afresh."""
        with self._stopping:
            if self._running is not None:
                self._running.stop()
                self._running = None

    def end(self, *, wait_s: float = 0.0) -> str | None:
        """Says how it ended, in one line; null while it runs."""
        running = self._running
        return None if running is None else running.end(wait_s)


class _Running:
    """One life of a server, with the folder of its log and sockets."""

    def __init__(self, config: VllmConfig, key: str, port: int, policy: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="turnledger-vllm-"))
        self._log = self._folder / "server.log"
        # The keeper removes it where this process is killed while the server runs.
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        with self._log.open("wb") as log:
            self._kept = KeptProcess(
                _command(config, port, policy),
                self._folder,
                environment=_environment(config, key, self._folder),
                stdout=log,
                stderr=log,
            )

    def end(self, wait_s: float = 0.0) -> str | None:
        try:
            status = self._kept.keeper.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        return _cause(status, self._log_text())

    def lost_its_port(self) -> bool:
        return self.end() is not None and "address already in use" in self._log_text().lower()

    def keep_log(self) -> str:
        """Puts the log where it outlives the server; returns its path."""
        number, path = tempfile.mkstemp(prefix="turnledger-vllm-", suffix=".log")
        os.close(number)
        shutil.copyfile(self._log, path)
        return path

    def stop(self) -> None:
        self._kept.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _log_text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def health(url: str, headers: Mapping[str, str]) -> int | None:
    """Returns the status with which a server says whether it is well; null if it says nothing."""
    try:
        return _answer(f"{url}/health", headers).status_code
    except (httpx.RequestError, httpx.InvalidURL):
        return None


def _answer(url: str, headers: Mapping[str, str]) -> httpx.Response:
    deadline = time.monotonic() + _ANSWER_TIME_S
    content = b""
    with (
        # No proxy of the environment: what is at a loopback address is not behind one.
        httpx.Client(headers=headers, timeout=_ANSWER_TIME_S, trust_env=False) as client,
        client.stream("GET", url) as response,
    ):
        for part in response.iter_bytes():
            content += part
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("its answer does not end", request=response.request)
    return httpx.Response(response.status_code, content=content)


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _command(config: VllmConfig, port: int, policy: str) -> list[str]:
    return [
        os.path.abspath(config.python),
        *("-m", "turnledger_serve"),
        *("--model", policy, "--served-model-name", SERVED_NAME),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", config.dtype, "--gpu-memory-utilization", str(config.gpu_memory_share)),
        # Log-probabilities of what is sampled from, not of the bare model.
        *("--logprobs-mode", "processed_logprobs"),
        # Else the policy's generation_config.json would change how it is sampled from.
        *("--generation-config", "vllm"),
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",  # how much of a prompt was found in that cache
        *("--worker-extension-cls", "turnledger_vllm.PolicyReports"),
        *("--middleware", "turnledger_vllm.RequireKey"),
        "--disable-uvicorn-access-log",
    ]


def _environment(config: VllmConfig, key: str, folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in (KEY_VARIABLE, "PYTHONHOME")}
    return {
        **kept,
        "PYTHONPATH": str(EXTENSION),
        "OMP_NUM_THREADS": str(config.threads),
        # Else its thread is bound to the first core, whoever else computes there.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_API_KEY": key,
        "VLLM_SERVER_DEV_MODE": "1",  # the calls that load weights and reset the prefix cache
        "VLLM_RPC_BASE_PATH": str(folder),
        # What it leaves behind goes with the folder, but not what was compiled: that takes long.
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get(
            "TORCHINDUCTOR_CACHE_DIR",
            f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}",
        ),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _cause(status: int, log: str) -> str:
    """Says in one line why a server ended, from its status and the last telling error it logged."""
    found = [
        match[1]
        for match in re.finditer(r"\b((?:\w+\.)*\w*(?:Error|Exception): .+)", log)
        if not any(part in match[1] for part in _SAYS_NOTHING)
    ]
    killed = f"it was killed (signal {status - 128})" if status > 128 else f"status {status}"
    cause = f"{killed}: {found[-1].strip()[:300]}" if found else killed
    if status == 128 + 9 or "memory" in cause.lower():
        cause += "; if memory ran out, lower vllm.kv_cache_gib or vllm.gpu_memory_share"
    return cause
