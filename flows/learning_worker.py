"""One of several processes that compute an update together.

Started by torchrun, here or on several machines, with the folder of the job:
torchrun ... -m flows.learning_worker FOLDER DEVICE THREADS. `job.pkl` is read from the folder; the
first process writes `update.pt`, and whichever fails writes `failure-RANK.pkl`. The first prints
how far it is, a line each.
"""

import ctypes
import os
import pickle
import signal
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

TIME_LIMIT_S = 1_800
"""How long a process may wait for the others, from start to end of an update."""
_PR_SET_PDEATHSIG = 1


def main(folder: str, device: str, threads: int) -> None:
    """Joins the others, computes this process's share, and leaves the result in the folder."""
    # Before torch is imported, which takes seconds: torchrun may be killed at any time, and starts
    # its processes from the thread that lives as long as it does.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = int(os.environ["RANK"])
    try:
        _work(Path(folder), device, threads, rank)
    except Exception as error:
        (Path(folder) / f"failure-{rank}.pkl").write_bytes(pickle.dumps(_told(error)))
        raise


def _work(folder: Path, device: str, threads: int, rank: int) -> None:
    import torch
    import torch.distributed as dist

    from flows.learning import learn
    from stages.optimisation.sharding import ShardedDevices

    torch.set_num_threads(threads)
    own = device if device == "cpu" else f"{device}:{os.environ['LOCAL_RANK']}"
    if device != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(timeout=timedelta(seconds=TIME_LIMIT_S))
    try:
        job = pickle.loads((folder / "job.pkl").read_bytes())

        def tell(text: str) -> None:
            if rank == 0:
                print(text, flush=True)

        # On a CPU all have the same memory, so shards would save none.
        learned = learn(job, own, tell, partial(ShardedDevices, by_block=device != "cpu"))
        weights = None
        if learned.update.optimiser_state is not None:
            assert isinstance(learned.devices, ShardedDevices)
            weights = learned.devices.weights()
        if rank == 0:
            torch.save((learned.update, weights), folder / "update.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _told(error: Exception) -> object:
    """Returns an error of ours as it is, and of others what they say in a line."""
    from schemas.errors import TurnledgerError

    if isinstance(error, TurnledgerError):
        return error
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
