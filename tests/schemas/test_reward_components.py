"""Reward components: a new one is a class and a line, and is everywhere by itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.config_text import parse_config
from schemas.errors import ConfigError
from schemas.reward_components import COMPONENTS, RewardComponents
from schemas.tables import TurnRewards

ROOT = Path(__file__).parents[2]

NEW_CLASS = '''class ShortCode(RewardComponent):
    """Bonus of a turn with short code."""

    bonus: float = Field(0.0, ge=0)

    @override
    def reward(self) -> pl.Expr:
        is_short = pl.col("code").str.len_chars() < 10
        return pl.when(is_short).then(self.bonus).otherwise(0.0)


'''
ASKS = """
from schemas.config_text import parse_config
from schemas.tables import TurnRewards
from stages.turn_rewards import score_turns
from tests.docs.generated_tables import columns
from tests.stages.reward_frames import executions_frame, prompts_frame, turns_frame

config = parse_config("", ["turn_rewards.components.short_code.bonus=0.25"]).turn_rewards
turns = turns_frame({("t", 0): [{"code": "x"}, {"answer": "1"}]})
rewards = score_turns(prompts_frame({"t": "1"}), turns, executions_frame(), config)
print(rewards["short_code"].to_list(), rewards["total"].to_list())
print("Bonus of a turn with short code." in columns("turn_rewards"))
"""


def test_every_component_is_a_column_with_its_meaning() -> None:
    columns = TurnRewards.columns()
    for name, doc in COMPONENTS.items():
        assert (columns[name].metadata or {})["doc"] == doc
        assert doc


def test_every_component_is_worth_nothing_by_default() -> None:
    for name in COMPONENTS:
        assert getattr(RewardComponents(), name).penalty == 0


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("none.penalty=-1", "turn_rewards.components.none"),
        ("void_turn.penalty=1", "turn_rewards.components.void_turn.penalty"),
        ("void_turn.reward=1", "turn_rewards.components.void_turn.reward"),
        ("overlong.cache_tokens=0", "turn_rewards.components.overlong.cache_tokens"),
    ],
)
def test_a_setting_that_is_wrong_is_named(setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config("", [f"turn_rewards.components.{setting}"])


def test_a_new_component_is_a_setting_a_column_a_term_and_in_the_documentation(
    tmp_path: Path,
) -> None:
    for package in ("stages", "schemas", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    module = tmp_path / "schemas/reward_components.py"
    source = module.read_text()
    edited = source.replace(
        "class RewardComponents(Section):", f"{NEW_CLASS}class RewardComponents(Section):"
    ).replace(
        "    overlong: Overlong = Overlong()\n",
        "    overlong: Overlong = Overlong()\n    short_code: ShortCode = ShortCode()\n",
    )
    assert edited.count("ShortCode") == 3
    module.write_text(edited)
    done = subprocess.run(
        [sys.executable, "-c", ASKS],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["[0.25, 0.0] [0.25, 1.0]", "True"], done.stderr


def test_a_cache_larger_than_the_whole_is_refused() -> None:
    settings = ["max_tokens=10", "cache_tokens=11"]
    with pytest.raises(ConfigError, match="cache_tokens are a part of max_tokens"):
        parse_config("", [f"turn_rewards.components.overlong.{text}" for text in settings])
