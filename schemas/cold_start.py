"""Settings of the cold start: what is imitated, and how it is learnt."""

from pydantic import Field, model_validator

from schemas.section import Section


class ColdStartConfig(Section):
    """Supervised start of the policy: on demonstrations of the embedded families, or on others'."""

    demonstrations: int = Field(12_800, ge=1)
    """Demonstrations of the embedded families; they also make the embedded tokenizer."""
    run: str | None = Field(None, min_length=1)
    """Run of the same store whose trajectories are imitated in place of demonstrations."""
    path: str | None = Field(None, min_length=1)
    """File of conversations that are imitated in place of demonstrations."""
    only_right: bool = True
    """Whether only trajectories with the right answer are imitated: rejection sampling."""
    steps: int = Field(800, ge=0)
    """Optimiser steps; 0 leaves the policy as it is."""
    batch_size: int = Field(16, ge=1)
    """Trajectories of a step."""
    muon_learning_rate: float = Field(0.012, gt=0)
    """Peak rate of Muon, which trains the matrices of the blocks on demonstrations."""
    adamw_learning_rate: float = Field(3e-3, gt=0)
    """Peak rate of AdamW, which trains embeddings and norms on demonstrations."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak rate of AdamW on trajectories of `run` or `path`, where it trains everything."""
    warmup_steps: int = Field(20, ge=0)

    @property
    def imitates(self) -> bool:
        """Whether trajectories of `run` or `path` are imitated in place of demonstrations."""
        return self.run is not None or self.path is not None

    @model_validator(mode="after")
    def _one_source(self) -> "ColdStartConfig":
        if self.run is not None and self.path is not None:
            raise ValueError("run and path are both set: trajectories come from one of them")
        return self
