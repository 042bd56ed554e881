"""The page on scaling out: its table is what the command prints."""

from docs_pages import DOCS, blocks_of
from typer.testing import CliRunner

from flows.cli import app


def test_the_page_shows_what_the_command_prints() -> None:
    printed = CliRunner().invoke(app, ["size"]).stdout
    shown = [block.text for block in blocks_of(DOCS / "scale.md") if block.language == "text"]
    assert printed in shown
