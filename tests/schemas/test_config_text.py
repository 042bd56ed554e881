"""Configurations from text: what is refused, by which name, and how single values are set."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import RunConfig
from schemas.config_text import changed_keys, override_config, parse_config
from schemas.errors import ConfigError


def message_of(toml_text: str = "", *overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_config(toml_text, overrides)
    return str(refused.value)


# What is refused


def test_an_unknown_key_is_refused_by_its_full_name() -> None:
    message = message_of("[rollout]\nprompt = 3")
    assert "config key rollout.prompt is unknown" in message


def test_an_unknown_section_is_refused_by_name() -> None:
    assert "config key rewards is unknown" in message_of("[rewards]\nx = 1")


@pytest.mark.parametrize(
    ("toml_text", "key", "given"),
    [
        ("seed = 'zero'", "seed", '"zero"'),
        ("iterations = 1.5", "iterations", "1.5"),
        ("[rollout]\nprompts = 'many'", "rollout.prompts", '"many"'),
        ("[problems]\npath = 3", "problems.path", "3"),
        ("[problems]\nlevels = 2", "problems.levels", "2"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(toml_text: str, key: str, given: str) -> None:
    message = message_of(toml_text)
    assert message.startswith(f"config key {key}: ")
    assert message.endswith(f"got {given}")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=-1", "seed"),
        ("seed=2147483648", "seed"),
        ("iterations=-1", "iterations"),
        ("rollout.samples=0", "rollout.samples"),
        ("rollout.temperature=-0.1", "rollout.temperature"),
        ("rollout.temperature=0.005", "rollout.temperature"),
        ("evaluation.temperature=1e-40", "evaluation.temperature"),
        ("execution.backend=docker", "execution.backend"),
        ("execution.memory_mib=1", "execution.memory_mib"),
        ("turn_rewards.invalid_call_penalty=0.1", "turn_rewards.invalid_call_penalty"),
        ("similarity.alpha=1.1", "similarity.alpha"),
        ("similarity.measure=embedding", "similarity"),
        ("advantages.gamma=1.01", "advantages.gamma"),
        ("advantages.normalise=batches", "advantages.normalise"),
        ("optimisation.learning_rate=0", "optimisation.learning_rate"),
        ("optimisation.learning_rate=nan", "optimisation.learning_rate"),
        ("optimisation.clip_low=1", "optimisation.clip_low"),
        ("problems.levels=[]", "problems.levels"),
        ("policy.hidden_size=90", "policy"),
    ],
)
def test_an_impossible_value_is_refused_by_name(override: str, key: str) -> None:
    assert message_of("", override).startswith(f"config key {key}: ")


def test_heads_that_do_not_divide_the_hidden_size_are_told() -> None:
    assert "hidden_size must be a multiple of twice the heads" in message_of("", "policy.heads=5")


def test_every_bad_key_is_told_in_one_line() -> None:
    message = message_of("seed = -1\n[rollout]\nprompts = 0\nturns = 2")
    assert all(key in message for key in ("seed", "rollout.prompts", "rollout.turns"))
    assert "\n" not in message


def test_text_that_is_no_toml_is_refused() -> None:
    assert message_of("seed = = 3").startswith("config is not valid TOML")


def test_own_problems_without_held_out_ones_are_refused() -> None:
    assert "evaluation.path" in message_of("", "problems.path=mine.jsonl")
    config = parse_config("", ["problems.path=mine.jsonl", "evaluation.path=theirs.jsonl"])
    assert config.problems.path == "mine.jsonl"


def test_a_long_bad_value_is_cut_in_the_message() -> None:
    assert len(message_of("", f"seed={'x' * 1000}")) < 250


# What a file says


def test_nothing_gives_the_defaults() -> None:
    assert parse_config() == RunConfig()


def test_a_file_changes_its_keys_and_leaves_the_others() -> None:
    config = parse_config("seed = 4\n[rollout]\nprompts = 3\n[problems]\nlevels = [2]")
    changed = changed_keys(RunConfig(), config)
    assert changed == {
        "seed": (0, 4),
        "rollout.prompts": (32, 3),
        "problems.levels": ([1, 2, 3], [2]),
    }


# --set


def test_an_override_goes_before_the_file() -> None:
    assert parse_config("[rollout]\nprompts = 3", ["rollout.prompts=5"]).rollout.prompts == 5


def test_the_last_override_of_a_key_counts() -> None:
    assert parse_config("", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["rollout.prompts", "rollout.prompts 3", "=3", " = 3", ""])
def test_an_override_without_key_or_equals_sign_says_how_to_write_it(override: str) -> None:
    message = message_of("", override)
    assert message.startswith(f"--set {override}: ")
    assert "section.key=value" in message


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("problems.levels=[1, 3]", (1, 3)),
        ("problems.id_field=null", None),
        ("problems.id_field=none", None),
        ("problems.id_field=uid", "uid"),
        ('problems.id_field="null"', "null"),
        ("problems.id_field=a=b", "a=b"),
        ("problems.id_field=data/my set.jsonl", "data/my set.jsonl"),
        ("problems.id_field=", ""),
        (" problems.id_field = uid ", "uid"),
        ("optimisation.learning_rate=1e-3", 1e-3),
        ("turn_rewards.syntax_error_is_invalid=false", False),
    ],
)
def test_an_override_is_read_as_toml_or_else_as_text(override: str, value: object) -> None:
    section, _, key = override.partition("=")[0].strip().partition(".")
    assert getattr(getattr(parse_config("", [override]), section), key) == value


def test_an_override_into_a_value_is_refused() -> None:
    assert "seed is no section" in message_of("seed = 1", "seed.deeper=1")


def test_an_override_of_an_unknown_key_is_refused_by_name() -> None:
    assert "config key rollout.turns is unknown" in message_of("", "rollout.turns=3")
    assert "config key gamma is unknown" in message_of("", "gamma=0.5")


# override_config


def test_a_key_without_dot_belongs_to_the_section_that_has_it() -> None:
    config = override_config(RunConfig(), ["gamma=0.5"], section="advantages")
    assert changed_keys(RunConfig(), config) == {"advantages.gamma": (1.0, 0.5)}


def test_a_key_that_the_section_has_not_is_looked_up_at_the_top() -> None:
    config = override_config(RunConfig(), ["seed=5"], section="advantages")
    assert changed_keys(RunConfig(), config) == {"seed": (0, 5)}


def test_a_key_with_dot_goes_past_the_section() -> None:
    config = override_config(RunConfig(), ["similarity.alpha=0"], section="advantages")
    assert changed_keys(RunConfig(), config) == {"similarity.alpha": (0.5, 0.0)}


def test_an_override_leaves_the_given_configuration_alone() -> None:
    config = RunConfig()
    override_config(config, ["rollout.prompts=5"])
    assert config == RunConfig()


def test_no_override_gives_an_equal_configuration() -> None:
    config = parse_config("seed = 3\n[problems]\nlevels = [1]")
    assert override_config(config, []) == config


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31 - 1),
    gamma=st.floats(0, 1),
    levels=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_a_value_set_is_the_value_read(seed: int, gamma: float, levels: list[int]) -> None:
    config = parse_config(
        "", [f"seed={seed}", f"advantages.gamma={gamma}", f"problems.levels={levels}"]
    )
    assert config.seed == seed
    assert config.advantages.gamma == gamma
    assert config.problems.levels == tuple(levels)


# changed_keys


def test_equal_configurations_have_no_changed_key() -> None:
    assert changed_keys(RunConfig(), parse_config("seed = 0")) == {}


def test_changed_keys_are_told_with_the_old_and_the_new_value() -> None:
    old = parse_config("", ["seed=1", "rollout.prompts=4"])
    new = parse_config("", ["seed=2", "rollout.prompts=4"])
    assert changed_keys(old, new) == {"seed": (1, 2)}
    assert changed_keys(new, old) == {"seed": (2, 1)}
