"""An update on as many processes as are asked for: on several, torchrun starts and watches them.

They live as long as this process does, however it ends: a keeper ends torchrun, and the processes
end with it. If one of them fails, torchrun ends the others.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from flows.learning import Job, learn, prepare, save_learned
from schemas.config import ComputeConfig
from schemas.errors import TurnledgerError
from stages.kept_process import KeptProcess
from stages.optimisation import Update
from storage.checkpoints import load_policy

_SOURCES = Path(__file__).resolve().parent.parent
_END = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s+exitcode\s*:\s*(-?\d+)")


def update_policy(
    job: Job, compute: ComputeConfig, on_progress: Callable[[str], None]
) -> tuple[Update, Callable[[Path], None] | None]:
    """Computes an update on as many processes as are asked for.

    Returns:
        What it came to, and what writes the next policy into a folder; null if a guard stopped it.

    Raises:
        TurnledgerError: If a policy or the batch cannot be used, or a process fails.
    """
    if compute.processes == 1:
        learned = learn(job, compute.device, on_progress)
        update, model, tokenizer = learned.update, learned.model, learned.tokenizer
    else:
        update, weights = learn_on_processes(job, compute, on_progress)
        if weights is not None:
            model, tokenizer = load_policy(job.policy)
            prepare(job, model)
            model.load_state_dict(weights)
    state = update.optimiser_state
    if state is None:
        return update, None
    return update, lambda out: save_learned(out, job, model, tokenizer, state)


def learn_on_processes(
    job: Job, compute: ComputeConfig, on_progress: Callable[[str], None]
) -> tuple[Update, dict[str, torch.Tensor] | None]:
    """Computes an update on `compute.processes` processes.

    Returns:
        What it came to, and the weights of the next policy; null if a guard stopped it.

    Raises:
        TurnledgerError: If a process fails, with its reason in one line.
    """
    with tempfile.TemporaryDirectory(prefix="turnledger-learning-") as name:
        folder = Path(name)
        (folder / "job.pkl").write_bytes(pickle.dumps(job))
        status = _run(folder, compute, on_progress)
        if status:
            raise _failure(folder, compute.processes, status)
        result: tuple[Update, dict[str, torch.Tensor] | None] = torch.load(
            folder / "update.pt", weights_only=False, map_location="cpu"
        )
        return result


def _run(folder: Path, compute: ComputeConfig, on_progress: Callable[[str], None]) -> int:
    """Returns the status of torchrun once all processes have ended."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(compute.processes), "--log-dir", str(folder / "logs")]
    worker = ["-m", "flows.learning_worker", str(folder), compute.device, str(compute.threads)]
    path = os.pathsep.join([str(_SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "log").open("wb") as log:
        kept = KeptProcess(
            [*torchrun, *worker],
            folder,
            environment={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": str(compute.threads),
            },
            stdout=subprocess.PIPE,
            stderr=log,
        )
    output = kept.keeper.stdout
    assert output is not None
    try:
        with output:
            for line in output:
                on_progress(line.strip())
    finally:
        # If this process is interrupted they still run; a program that ended is waited for.
        status = kept.end()
    return status


def _failure(folder: Path, processes: int, status: int) -> TurnledgerError:
    """Says in one line why an update failed: by a process that was killed, or what one raised."""
    log = (folder / "log").read_text(errors="replace")
    for rank, code in _END.findall(log):
        if int(code) < 0 and -int(code) != signal.SIGTERM:  # with which torchrun ends the others
            return TurnledgerError(
                f"optimisation: process {rank} of {processes} was killed (signal {-int(code)}); if "
                "memory ran out, lower optimisation.micro_batch_tokens or compute.processes"
            )
    told = sorted(folder.glob("failure-*.pkl"), key=lambda path: path.stat().st_mtime_ns)
    if told:
        error = pickle.loads(told[0].read_bytes())
        if isinstance(error, TurnledgerError):
            return error
        rank = told[0].stem.removeprefix("failure-")
        return TurnledgerError(f"optimisation: process {rank} of {processes} failed: {error}")
    lines = [line for line in log.splitlines() if re.search(r"\w+(Error|Exception)\b", line)]
    cause = lines[-1].strip()[:300] if lines else f"status {status}"
    return TurnledgerError(f"optimisation: {processes} processes could not compute it: {cause}")
