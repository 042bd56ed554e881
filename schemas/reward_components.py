"""Optional components of the turn reward: each is one class, its settings and one expression.

A class here and its line in `RewardComponents` make a new component: it becomes a section of the
settings (`turn_rewards.components.NAME`), a column of `turn_rewards`, a term of `total` and a part
of the fingerprint. By default each is worth 0. As the table has a column more, raise its version in
`schemas.tables.TABLES`, before anything is stored, and give older rows a 0 in `schemas.upgrades`;
the tests say so too, and which rows of the documentation are missing.

The rule of GTPO itself, accuracy and format, is in `stages.turn_rewards`.
"""

from abc import ABC, abstractmethod

import polars as pl
from pydantic import Field, model_validator
from typing_extensions import override

from schemas.section import Section


class RewardComponent(Section, ABC):
    """Settings of one component, and what it is worth on every turn."""

    @abstractmethod
    def reward(self) -> pl.Expr:
        """Returns the component's value of each turn, never null.

        It may use the columns of `turns`; `status`, that of the execution, null without one;
        `is_last`; `tokens`, generated in the turn, and `trajectory_tokens`, in its trajectory.
        """


class ExecutionError(RewardComponent):
    """Penalty of a turn whose code did not end well."""

    penalty: float = Field(0.0, ge=-1e6, le=0)

    @override
    def reward(self) -> pl.Expr:
        failed = pl.col("status").is_in(["error", "timeout", "memory", "output_limit", "refused"])
        return pl.when(failed).then(self.penalty).otherwise(0.0)


class VoidTurn(RewardComponent):
    """Penalty of a turn with neither code nor answer (void turn, arXiv 2509.02479)."""

    penalty: float = Field(0.0, ge=-1e6, le=0)

    @override
    def reward(self) -> pl.Expr:
        void = pl.col("code").is_null() & pl.col("answer").is_null()
        return pl.when(void).then(self.penalty).otherwise(0.0)


class Overlong(RewardComponent):
    """Penalty on the last turn of a long trajectory (soft overlong punishment, arXiv 2503.14476).

        penalty * min(1, max(0, (tokens - (max_tokens - cache_tokens)) / cache_tokens))

    with the generated tokens of the trajectory; a penalty of -1 is DAPO's.
    """

    penalty: float = Field(0.0, ge=-1e6, le=0)
    max_tokens: int = Field(512, ge=1, lt=2**31)
    """Generated tokens of a trajectory at which the whole penalty is due."""
    cache_tokens: int = Field(128, ge=1)
    """Over so many tokens before that it grows from 0."""

    @model_validator(mode="after")
    def _cache_is_a_part(self) -> "Overlong":
        if self.cache_tokens > self.max_tokens:
            raise ValueError("cache_tokens are a part of max_tokens, so no more than these")
        return self

    @override
    def reward(self) -> pl.Expr:
        beyond = pl.col("trajectory_tokens") - (self.max_tokens - self.cache_tokens)
        share = (beyond / self.cache_tokens).clip(0.0, 1.0)
        return pl.when(pl.col("is_last")).then(self.penalty * share).otherwise(0.0)


class RewardComponents(Section):
    """All components; the name of a field is that of its column."""

    execution_error: ExecutionError = ExecutionError()
    void_turn: VoidTurn = VoidTurn()
    overlong: Overlong = Overlong()

    def rewards(self) -> list[pl.Expr]:
        """Returns one expression a component, named after its column."""
        components = {name: getattr(self, name) for name in type(self).model_fields}
        return [component.reward().alias(name) for name, component in components.items()]


COMPONENTS: dict[str, str] = {
    name: (field.annotation.__doc__ or "").partition("\n")[0]
    for name, field in RewardComponents.model_fields.items()
    if field.annotation is not None
}
"""Name of every component to what it is, in the order of its columns."""
