"""What the processes that tests start run, and how to talk with them."""

import subprocess

WRITER = """
import sys
from pathlib import Path
from storage import Store
from storage_builders import fingerprint, slot, updates

def write_policy(folder):
    for part in range(20):
        (folder / f"part{part}").write_bytes(b"x" * 200_000)

store = Store.open(sys.argv[1], create=True)
frame = updates(rows=20_000, loss=float(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
output = store.write(slot(), fingerprint(seed=int(sys.argv[3])), tables={"updates": frame},
    checkpoint_writer=write_policy, policy_version=1, seconds=0, parents=[])
print(output.tables["updates"].digest, flush=True)
"""


def say(process: subprocess.Popen[str], text: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
