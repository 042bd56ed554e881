"""A training of a few seconds, and the command line as a user runs it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from forked_commands import ForkedCommands

from storage import Store

SMALL = (
    "iterations=2",
    "cold_start.steps=40",
    "cold_start.demonstrations=400",
    "policy.hidden_size=32",
    "policy.layers=2",
    "policy.heads=2",
    "policy.feed_forward_size=64",
    "rollout.prompts=6",
    "rollout.samples=4",
    "rollout.max_turns=3",
    "rollout.max_turn_tokens=60",
    "evaluation.problems=4",
    "evaluation.samples=2",
    "evaluation.every=2",
    "compute.threads=1",
    "problems.levels=[1]",
    # A policy this small is never right: its groups differ in form alone, and by
    # the discount in when it was broken. Each breach has a price of its own, or a
    # group of several would be without credit, and on some CPUs all of them are.
    "advantages.groups_without_outcome_variance=keep",
    "advantages.gamma=0.9",
    "turn_rewards.no_tool_penalty=-0.05",
)
"""Settings of a training that takes a few seconds and still does everything."""


@dataclass(frozen=True)
class Cli:
    """Runs `turnledger` as a user does, in a process of its own."""

    environment: dict[str, str]
    folder: Path | None = None
    forked: ForkedCommands | None = None
    """Runs commands that are waited for; null to start each afresh."""

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
        if self.forked is not None:
            return self.forked.run(arguments, timeout_s)
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def train(self, store: Path, *overrides: str, run: str = "small") -> str:
        done = self.run("train", "--store", str(store), "--run", run, *sets(*SMALL, *overrides))
        assert done.returncode == 0, done.stderr
        return done.stdout


def sets(*overrides: str) -> list[str]:
    """Turns overrides into command-line options."""
    return [part for override in overrides for part in ("--set", override)]


def contents(store: Store, run: str = "small") -> dict[str, str]:
    """Returns the digest of every table and policy of a run, timings left out, by its place."""
    digests: dict[str, str] = {}
    for uri, manifest in store.results(run):
        output = manifest.output(uri)
        digests |= {ref.uri: ref.content for ref in output.tables.values()}
        if output.checkpoint is not None:
            digests[output.checkpoint.uri] = output.checkpoint.digest
    return digests


def kept(store: Path, run: str = "small") -> list[int]:
    """Returns the iterations whose policy has its files."""
    return sorted(
        int(path.parts[-4].removeprefix("iteration="))
        for path in (store / f"run={run}").glob("iteration=*/split=train/stage=*/policy")
    )
