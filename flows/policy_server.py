"""The vLLM engine of a process, lent to one policy at a time."""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flows.interrupts import INTERRUPTS
from schemas.config import VllmConfig
from schemas.errors import EngineError, PolicyError
from stages.rollout.vllm_engine import VllmEngine
from stages.rollout.weight_check import Forward

_LOOK_S = 0.1
"""How long is waited for who starts a server before it is taken from him again."""


class PolicyServer:
    """Starts one server when it is first needed, and gives it the weights that are asked for.

    Shards of one policy sample side by side. Whoever asks for another one, such as an evaluation
    beside a rollout, waits until these are through.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._config: VllmConfig | None = None
        self._engine: VllmEngine | None = None
        self._policy: str | None = None
        self._users = 0
        self._is_given_up = False

    @contextmanager
    def lend(
        self, config: VllmConfig, *, folder: str, policy: str, version: int, forward: Forward
    ) -> Iterator[VllmEngine]:
        """Yields the engine, which samples from the policy until it is given back.

        Args:
            config: Which server; another one than before ends the one that was started.
            folder: Where the policy is stored.
            policy: Digest of the policy.
            version: Its version.
            forward: The trainer's forward pass, to check the server's weights against.

        Raises:
            EngineError: If the server cannot sample from the policy, or was given up.
            PolicyError: If the policy cannot be used.
        """
        wanted = (config, f"{policy} {version}")
        with self._changed:
            self._changed.wait_for(
                lambda: not self._users or (self._config, self._policy) == wanted
            )
            if self._is_given_up:
                raise EngineError("the vLLM server was given up")
            engine = self._ready(config, forward)
            if self._policy != wanted[1]:
                self._policy = None
                engine.update_weights(folder, version)
                self._policy = wanted[1]
            self._users += 1
        try:
            yield engine
        except (EngineError, PolicyError):
            # Whatever the server holds now: who comes next has it loaded, and checked, again.
            with self._changed:
                self._policy = None
            raise
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _ready(self, config: VllmConfig, forward: Forward) -> VllmEngine:
        if self._engine is None or self._config != config:
            self.close()
            self._config, self._policy = config, None
            self._engine = VllmEngine(config, forward=forward)
            atexit.register(self._engine.close)
        return self._engine

    @contextmanager
    def given_up_on_interrupt(self) -> Iterator[None]:
        """Ends the server when the block is interrupted, and lends it to nobody until the next one.

        Who leaves the block waits for threads that sample. They would start the server to its end,
        or wait for its answers, if it was not taken from them.
        """
        self._is_given_up = False
        try:
            yield
        except INTERRUPTS:
            self._is_given_up = True
            # Who starts it, or loads weights, holds the lock, and may have begun just now.
            while not self._changed.acquire(timeout=_LOOK_S):
                if self._engine is not None:
                    self._engine.close()
            self._changed.release()
            self.close()
            raise

    def close(self) -> None:
        """Ends the server, if there is one."""
        if self._engine is not None:
            atexit.unregister(self._engine.close)
            self._engine.close()
            self._engine = None
