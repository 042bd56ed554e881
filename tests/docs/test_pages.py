import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from docs_pages import DOCS, PAGES, PAGES_AND_README, ROOT, Block, blocks_of
from docs_workplace import TRAIN, Workplace, commands_of

from schemas.config import RunConfig
from schemas.config_text import parse_config

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [block for block in BLOCKS if block.is_command]
README = ROOT / "README.md"
LONG_PAGES = ("study.md",)
SECTIONS = [name for name in RunConfig.model_fields if name not in ("seed", "iterations")]


def run_commands(block: Block, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.script.strip() == TRAIN:  # made the shared run, through the shell
        return
    commands = commands_of(block.script)
    if commands is not None:
        workplace.run_here(commands, monkeypatch)
        return
    done = workplace.run(block.script)
    assert done.returncode == 0, f"{block.name}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            marks=[pytest.mark.long, pytest.mark.timeout(900)] if page.name in LONG_PAGES else [],
        )
        for page in PAGES
    ],
    ids=lambda page: page.name,
)
def test_what_a_page_shows_runs(
    page: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.folder)
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks_of(page):
        if block.why_not_run is not None or block.is_part_of_example:
            continue
        if block.is_command:
            run_commands(block, workplace, monkeypatch)
        elif block.language == "python":
            with workplace.with_server():
                exec(compile(block.text, block.name, "exec"), names)


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.name)
def test_command_is_run_or_says_why_not(block: Block) -> None:
    is_ours = block.script.startswith(("turnledger", "python"))
    assert is_ours or block.why_not_run, f"{block.name}: add <!-- not run: REASON -->"


def test_the_shared_run_is_made_as_the_pages_say() -> None:
    shown = [block.script.strip() for block in COMMANDS if block.page == "operations.md"]
    assert TRAIN in shown


@pytest.mark.parametrize("page", PAGES_AND_README, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES_AND_README, ids=lambda page: page.name)
def test_every_page_is_reached_from_the_readme(page: Path) -> None:
    reached = {ROOT / "README.md"}
    reached |= {ROOT / at for at in re.findall(r"\]\((docs/[\w-]+\.md)", README.read_text())}
    assert page in reached


@pytest.mark.parametrize("page", PAGES_AND_README, ids=lambda page: page.name)
def test_extra_that_a_page_installs_exists(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"(?:turnledger|\.)\[([a-z0-9]+)\]", page.read_text()))
    assert named <= set(extras["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_setting_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(rf"(?<![\w./])({'|'.join(SECTIONS)})\.([a-z_]+)\b", page.read_text())
    suffixes = {"md", "py", "parquet", "toml", "txt"}
    unknown = {
        f"{section}.{key}"
        for section, key in named
        if key not in suffixes
        and key not in getattr(RunConfig.model_fields[section].annotation, "model_fields", {})
    }
    assert not unknown


@pytest.mark.parametrize("block", [b for b in COMMANDS if b.why_not_run], ids=lambda b: b.name)
def test_a_training_that_is_not_run_here_has_settings_that_go_together(block: Block) -> None:
    for line in block.script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "turnledger" in words and "train" in words:
            parse_config("", [words[i + 1] for i, word in enumerate(words) if word == "--set"])


def test_the_settings_of_the_literature_are_those_that_the_page_of_engines_names() -> None:
    shown = next(b for b in COMMANDS if "--set policy.path=models/Qwen2.5-7B" in b.script)
    config = parse_config("", re.findall(r"--set (\S+)", shown.script))
    rollout = config.rollout
    assert (rollout.samples, rollout.max_turns, rollout.temperature) == (16, 16, 1.0)
    assert rollout.max_trajectory_tokens == 16_384


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_names_no_place_of_one_machine(page: Path) -> None:
    assert not re.search(r"/(?:work|root|home|tmp/)\b", page.read_text())


def test_every_page_is_linked_from_another() -> None:
    for page in DOCS.glob("*.md"):
        others = [other for other in PAGES_AND_README if other != page]
        assert any(f"{page.name}" in other.read_text() for other in others), page.name
