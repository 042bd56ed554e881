"""Studies as TOML: names, seeds and settings that do not fit are refused by name."""

from pathlib import Path

import pytest

from schemas.errors import ConfigError
from schemas.study import parse_study

ROOT = Path(__file__).parents[2]
TINY = (ROOT / "docs" / "examples" / "study.toml").read_text()


def test_a_training_has_the_settings_of_its_study_task_arm_and_seed() -> None:
    study = parse_study((ROOT / "recipes" / "study.toml").read_text(), name="study.toml")
    config = study.config("deep", "gtpo_gamma_80", 3, 1e-4)
    assert config.rollout.prompts == 16
    assert config.problems.levels == (4, 5, 6)
    assert config.advantages.gamma == 0.8
    assert (config.seed, config.optimisation.learning_rate) == (3, 1e-4)
    assert study.tuned("gtpo_gamma_80") == "gtpo"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('arms = ["gtpo"]', 'arms = ["gtop"]', "pieces.main.arms: there is no gtop; known: grpo"),
        ('task = "one"', 'task = "two"', "tuning.task: there is no two"),
        ("seeds = [1, 2]", "seeds = [1, 101]", "101 was tuned on: report other seeds"),
        ("seeds = [1, 2]", "seeds = [1]", "pieces.main.seeds"),
        ("estimator=gtpo", "estimator=gptp", "task one, arm gtpo: config key advantages.estimator"),
        ("[tuning]", "[tunings]", "tuning"),
        ("learning_rates = [2.5e-4]", "learning_rates = [0.0]", "tuning.learning_rates.0"),
        ("[tasks.one]", "[tasks.One]", "tasks.One"),
        ('name = "tiny"', "name = tiny", "study.toml is not valid TOML"),
    ],
)
def test_what_does_not_fit_is_named(old: str, new: str, reason: str) -> None:
    assert old in TINY
    with pytest.raises(ConfigError, match=r"study\.toml") as refused:
        parse_study(TINY.replace(old, new, 1), name="study.toml")
    assert reason in str(refused.value)
