"""The vLLM engine of a process, lent to one policy at a time."""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.config import VllmConfig
from schemas.errors import EngineError, PolicyError
from stages.rollout.vllm_engine import VllmEngine
from stages.rollout.weight_check import Forward


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
            EngineError: If the server cannot sample from the policy.
            PolicyError: If the policy cannot be used.
        """
        wanted = (config, f"{policy} {version}")
        with self._changed:
            self._changed.wait_for(
                lambda: not self._users or (self._config, self._policy) == wanted
            )
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

    def close(self) -> None:
        """Ends the server, if there is one."""
        if self._engine is not None:
            atexit.unregister(self._engine.close)
            self._engine.close()
            self._engine = None
