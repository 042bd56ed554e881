"""Settings of a study: which trainings are compared, and with what they are tuned."""

import tomllib
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from schemas.config import RunConfig
from schemas.config_text import override_config, parse_config
from schemas.errors import ConfigError
from schemas.section import Section

Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,15}$")]
"""Name of a study, task, arm or piece; part of the names of its runs."""
Seed = Annotated[int, Field(ge=0, lt=10_000)]
Settings = tuple[str, ...]
"""Changed settings of a run, `section.key=value` each."""


class Task(Section):
    """What is trained on."""

    about: str = ""
    set: Settings = ()


class Arm(Section):
    """A way to train that is compared with others."""

    about: str = ""
    set: Settings = ()
    tuned_as: Name | None = None
    """Arm whose learning rate is taken; null for one of its own."""


class Tuning(Section):
    """How the learning rate of every arm is chosen: the same trainings for each."""

    task: Name
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """Other seeds than those that are reported."""


class Piece(Section):
    """A part of the study: some arms against one of them, on some tasks."""

    about: str = ""
    reference: Name
    """Arm that the others are compared with."""
    arms: tuple[Name, ...] = Field(min_length=1)
    tasks: tuple[Name, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(min_length=2)


class StudyConfig(Section):
    """A study: what is asked, and every training that answers it."""

    name: Name
    title: str
    hypotheses: tuple[str, ...] = ()
    """What is expected, written down before anything is trained."""
    thresholds: dict[Name, Annotated[float, Field(gt=0, le=1)]] = Field({})
    """Task to an accuracy whose reaching is timed."""
    set: Settings = ()
    """Settings of all trainings."""
    tasks: dict[Name, Task] = Field(min_length=1)
    arms: dict[Name, Arm] = Field(min_length=2)
    tuning: Tuning
    pieces: dict[Name, Piece] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> "StudyConfig":
        tasks, arms = [*self.tasks], [*self.arms]
        named = [
            ("tuning.task", [self.tuning.task], tasks),
            ("thresholds", [*self.thresholds], tasks),
        ]
        for name, arm in self.arms.items():
            named.append((f"arms.{name}.tuned_as", [arm.tuned_as or name], arms))
        for name, piece in self.pieces.items():
            named.append((f"pieces.{name}.arms", [*piece.arms, piece.reference], arms))
            named.append((f"pieces.{name}.tasks", [*piece.tasks], tasks))
        for key, used, known in named:
            unknown = next((name for name in used if name not in known), None)
            if unknown is not None:
                raise ValueError(f"{key}: there is no {unknown}; known: {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _tuned_by_its_own(self) -> "StudyConfig":
        for name, arm in self.arms.items():
            if arm.tuned_as is not None and self.arms[arm.tuned_as].tuned_as is not None:
                raise ValueError(f"arms.{name}.tuned_as: {arm.tuned_as} has no rate of its own")
        for name, piece in self.pieces.items():
            shared = sorted({*piece.seeds} & {*self.tuning.seeds})
            if shared:
                raise ValueError(
                    f"pieces.{name}.seeds: {shared[0]} was tuned on: report other seeds"
                )
        return self

    def tuned(self, arm: str) -> str:
        """Returns the arm whose learning rate an arm is trained with."""
        return self.arms[arm].tuned_as or arm

    def config(self, task: str, arm: str, seed: int, learning_rate: float) -> RunConfig:
        """Returns the settings of one training.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        own = (f"seed={seed}", f"optimisation.learning_rate={learning_rate}")
        base = parse_config("", self.set, name=f"study {self.name}")
        return override_config(base, (*self.tasks[task].set, *self.arms[arm].set, *own))


def parse_study(toml_text: str, *, name: str) -> StudyConfig:
    """Reads a study from TOML.

    Args:
        toml_text: Content of the file.
        name: What errors call it.

    Raises:
        ConfigError: On malformed TOML, unknown keys, impossible values, and settings that no
            training could have.
    """
    try:
        values: dict[str, Any] = tomllib.loads(toml_text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    try:
        study = StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_one_line(error.errors()[0])}") from error
    for task in study.tasks:
        for arm in study.arms:
            try:
                study.config(task, arm, 0, study.tuning.learning_rates[0])
            except ConfigError as error:
                raise ConfigError(f"{name}: task {task}, arm {arm}: {error}") from error
    return study


def _one_line(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}" if key else message
