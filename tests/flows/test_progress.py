"""What the terminal shows: as wide as it is, without codes where it is none."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from small_runs import SMALL, Cli, sets

from flows.events import StageEvent
from flows.pace import Kind, Pace
from flows.progress import Progress
from storage import Slot

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WORK = Counter({Kind("train", "rollout", 0): 6})


def in_terminal(cli: Cli, columns: int, *arguments: str, **environment: str) -> tuple[int, str]:
    """Runs the command in a terminal of its own; returns exit code and all that it showed."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {k: v for k, v in cli.environment.items() if k not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        env={**inherited, "TERM": "xterm-256color", **environment},
        stdin=there,
        stdout=there,
        stderr=there,
        start_new_session=True,
    )
    os.close(there)
    shown = b""
    while True:
        try:
            part = os.read(here, 65536)
        except OSError:  # how Linux tells that the last process has closed the terminal
            break
        if not part:
            break
        shown += part
    os.close(here)
    return process.wait(), shown.decode()


def rows_of(shown: str) -> list[str]:
    """Returns every line that stood in a terminal at some time, without its codes."""
    return [row for row in re.split(r"[\r\n]+", CODES.sub("", shown)) if row.strip()]


def progress_of(iterations: int | None) -> Progress:
    pace = Pace(WORK if iterations else Counter())
    progress = Progress(pace, iterations)
    for shard in range(2):
        slot = Slot(run="r", iteration=3, split="train", stage="rollout", shard=shard, turn=0)
        for kind in ("started", "computed"):
            event = StageEvent(slot=slot, kind=kind, seconds=1.0, computed_s=1.0)
            pace.note(event)
            progress.note(event)
        later = slot.model_copy(update={"turn": 1})
        progress.note(StageEvent(slot=later, kind="started"))
    progress.tokens_per_s, progress.reward = 1204.4, 0.318
    return progress


def drawn(progress: Progress, width: int) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=True, no_color=True).print(progress)
    return CODES.sub("", text.getvalue()).splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_progress_is_two_lines_within_the_width(width: int) -> None:
    lines = drawn(progress_of(20), width)
    assert len(lines) == 2
    assert all(len(line) <= width for line in lines)


def test_progress_says_all_that_there_is_in_80_columns() -> None:
    first, second = drawn(progress_of(20), 80)
    assert re.match(r"iteration 3 of 20 .* 33% +0:00:00, 0:00:\d\d left", first)
    assert second.strip() == (
        "rollout shard 0 turn 1, rollout shard 1 turn 1  1,204 tokens/s  reward 0.32"
    )


def test_progress_says_the_stage_and_what_fits_in_40_columns() -> None:
    first, second = drawn(progress_of(20), 40)
    assert "3 of 20" in first
    assert "rollout shard 0 turn 1 and 1 more" in second


def test_a_rerun_shows_what_goes_on_without_an_end() -> None:
    first, second = drawn(progress_of(None), 80)
    assert first.strip() == "0:00:00 gone"
    assert "rollout shard 0 turn 1" in second


def test_a_training_in_a_terminal_shows_live_progress(cli: Cli, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    code, shown = in_terminal(
        cli, 80, "train", "--store", store, "--run", "small", *sets(*SMALL), NO_COLOR="1"
    )
    assert code == 0, shown
    rows = rows_of(shown)
    assert any(re.match(r"iteration \d of 2 .*\d+%", row) for row in rows)
    assert any("tokens/s" in row and len(row) <= 80 for row in rows)
    assert any("cold start: step " in row for row in rows)
    assert any(row.startswith("iteration   2  right") for row in rows)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown), "a colour in spite of NO_COLOR"


def test_a_narrow_terminal_shows_the_same_lines(cli: Cli, trained: Path) -> None:
    code, shown = in_terminal(cli, 40, "watch", "small", "--store", str(trained))
    assert code == 0
    assert "iteration   2  right" in shown


def test_no_code_is_written_where_the_output_is_no_terminal(cli: Cli, trained: Path) -> None:
    done = cli.run("watch", "small", "--store", str(trained))
    assert "iteration   2  right" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_runs_fit_the_width(cli: Cli, trained: Path) -> None:
    for columns in ("80", "40"):
        narrow = Cli({**cli.environment, "COLUMNS": columns})
        lines = narrow.run("runs", "--store", str(trained)).stdout.splitlines()
        assert lines
        assert all(len(line) <= int(columns) for line in lines)
