"""An engine with a meter: how many tokens of contexts it was asked, and how many it knew."""

import dataframely as dy
import polars as pl

from schemas.tables import GenerationTimes, WorkTimes
from stages.rollout.engine import Capabilities, Engine, Generations, Requests


class MeteredEngine:
    """Samples as another engine does, and counts."""

    def __init__(self, engine: Engine) -> None:
        """Begins at nothing; used by one stage run, on one thread."""
        self._engine = engine
        self._prompt_tokens = 0
        self._cached_tokens: int | None = 0

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return self._engine.capabilities

    @property
    def policy_version(self) -> int:
        """Version of the policy that samples."""
        return self._engine.policy_version

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of a context with its continuation."""
        return self._engine.max_context_tokens

    def generate(self, requests: Requests) -> Generations:
        """Samples a continuation of every context."""
        generated = self._engine.generate(requests)
        self._prompt_tokens += sum(map(len, requests.contexts))
        cached, known = generated.cached_tokens, self._cached_tokens
        self._cached_tokens = None if cached is None or known is None else known + sum(cached)
        return generated

    def update_weights(self, folder: str, policy_version: int) -> None:
        """Samples from another policy of the same architecture from now on."""
        self._engine.update_weights(folder, policy_version)

    def with_prompts(self, times: dy.DataFrame[WorkTimes]) -> dy.DataFrame[GenerationTimes]:
        """Returns the times of the stage run with what was counted meanwhile."""
        return GenerationTimes.validate(
            times.with_columns(
                prompt_tokens=pl.lit(self._prompt_tokens, pl.Int64),
                cached_tokens=pl.lit(self._cached_tokens, pl.Int64),
            )
        )
