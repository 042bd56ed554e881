"""The pages of the documentation as data: fenced blocks, and the comments that govern them.

A comment right before a fence says what the block is for:

    <!-- not run: REASON -->            a command or code that the tests leave out
    <!-- file: PATH -->                 the content of a new file of the worked example
    <!-- insert before: PATH: LINE -->  lines, marked +, to go before (or `after`) a line of a file

`<!-- generated: KIND NAME -->` to `<!-- end -->` encloses what `generated_tables` writes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PAGES_AND_README = [*PAGES, ROOT / "README.md"]
COMMAND_LANGUAGES = ("bash", "console", "shell", "sh")

_BLOCK = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]+) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_GENERATED = re.compile(
    r"(?P<head><!-- generated: (?P<kind>\w+) (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)",
    re.S,
)
_INSERT = re.compile(r"insert (?P<side>before|after): (?P<path>\S+): (?P<anchor>.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    comment: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def why_not_run(self) -> str | None:
        return self.comment.removeprefix("not run: ") if "not run: " in self.comment else None

    @property
    def is_command(self) -> bool:
        return self.language in COMMAND_LANGUAGES

    @property
    def is_part_of_example(self) -> bool:
        return self.comment.startswith(("file: ", "insert "))

    @property
    def script(self) -> str:
        """The commands of a block, without the prompts of a console."""
        lines = self.text.splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One step of the worked example: a new file, or lines beside a line of a file."""

    path: str
    text: str
    side: str | None = None
    anchor: str | None = None

    def apply(self, root: Path) -> None:
        target = root / self.path
        if self.anchor is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.text)
            return
        lines = target.read_text().splitlines(keepends=True)
        places = [n for n, line in enumerate(lines) if line.rstrip("\n") == self.anchor]
        assert len(places) == 1, f"{self.path} has {len(places)} lines {self.anchor!r}"
        at = places[0] + (self.side == "after")
        target.write_text("".join([*lines[:at], self.text, *lines[at:]]))


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page=page.name,
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            comment=match["comment"] or "",
            text=match["text"],
        )
        for match in _BLOCK.finditer(text)
    ]


def edits_of(page: Path) -> list[Edit]:
    edits = []
    for block in blocks_of(page):
        insert = _INSERT.fullmatch(block.comment)
        if block.comment.startswith("file: "):
            edits.append(Edit(path=block.comment.removeprefix("file: "), text=block.text))
        elif insert is not None:
            added = re.sub(r"^\+", "", block.text, flags=re.M)
            edits.append(Edit(text=added, **insert.groupdict()))
    return edits


def with_generated(text: str, render: Mapping[str, Callable[[str], str]]) -> str:
    """Returns a page with every generated part written anew, by the renderer of its kind."""

    def written(match: re.Match[str]) -> str:
        return f"{match['head']}{render[match['kind']](match['name'])}\n{match['end']}"

    return _GENERATED.sub(written, text)


def rows_of(page: Path, first_column: str) -> list[list[str]]:
    """Returns the cells of the table whose first heading is given, without code marks."""
    lines = page.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = line.strip("|").replace("\\|", "\0").split("|")
        rows.append([cell.strip().strip("`").replace("\0", "|") for cell in cells])
    return rows
