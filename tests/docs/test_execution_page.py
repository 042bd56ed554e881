import re

from docs_pages import DOCS, rows_of

from schemas.config import ExecutionConfig
from tests.stages.execution.attacks import ATTACKS

PAGE = DOCS / "execution.md"


def test_every_attack_is_in_the_table_of_threats() -> None:
    names = [re.findall(r"\w+", row[1]) for row in rows_of(PAGE, "what stops it")]
    listed = [name for row in names for name in row]
    assert sorted(listed) == sorted(ATTACKS)


def test_defaults_are_those_of_the_configuration() -> None:
    shown = {row[0]: row[1] for row in rows_of(PAGE, "setting")}
    defaults = ExecutionConfig()
    for setting, value in shown.items():
        default = getattr(defaults, setting.removeprefix("execution."))
        assert value == ("no" if default is False else f"{default:g}"), setting
