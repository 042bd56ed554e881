"""Compares the vLLM engine with bare vLLM, offline and without HTTP, on the same requests.

Both sides run the same environment, policy, seeds and settings: our engine with its server, and
`LLM.generate` in a process of its own. They take turns, so that a busy machine disturbs both alike,
after one batch each that warms them up. A short cold start makes the policy.

    python -m benchmarks.vllm --rows 128 --json
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.printing import print_figures
from schemas.config import VllmConfig
from schemas.config_text import parse_config
from stages.cold_start.start import start_policy
from stages.rollout.engine import Requests
from stages.rollout.vllm_engine import VllmEngine
from stages.rollout.vllm_server import EXTENSION
from stages.rollout.weight_check import forward_logprobs
from storage.checkpoints import load_policy, save_policy

BARE = """
import json, sys, time
import turnledger_vllm  # the same matrix products as the server's
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    asked = json.load(open(sys.argv[1]))
    model = LLM(asked["policy"], dtype=asked["dtype"], logprobs_mode="processed_logprobs",
                enable_prefix_caching=True, enable_chunked_prefill=False,
                worker_extension_cls="turnledger_vllm.PolicyReports",
                gpu_memory_utilization=asked["gpu_memory_share"])
    prompts = [{"prompt_token_ids": ids} for ids in asked["contexts"]]
    params = [SamplingParams(seed=seed, max_tokens=asked["limit"], logprobs=0, ignore_eos=True,
                             temperature=1.0, skip_special_tokens=False) for seed in asked["seeds"]]
    for _ in sys.stdin:  # one line for each repeat
        model.reset_prefix_cache()
        began = time.perf_counter()
        done = model.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = [list(row.outputs[0].token_ids) for row in done]
        print("RESULT" + json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)
"""


def main() -> None:
    arguments = parse_arguments()
    config = VllmConfig(python=arguments.python, dtype=arguments.dtype)
    with tempfile.TemporaryDirectory() as folder:
        policy = arguments.policy or write_policy(Path(folder) / "policy")
        requests = make_requests(policy, arguments)
        asked = write_requests(policy, config, requests, Path(folder))
        engine = VllmEngine(config, forward=forward)
        with bare_vllm(config, asked) as bare:
            ours, theirs, tokens = take_turns(engine, bare, policy, requests, arguments.repeats)
        engine.close()
    sampled = arguments.rows * arguments.tokens
    medians = {"engine": statistics.median(ours), "bare": statistics.median(theirs)}
    figures = {
        "engine_tokens_s": sampled / medians["engine"],
        "bare_tokens_s": sampled / medians["bare"],
        "ratio": medians["bare"] / medians["engine"],
        "equal_rows_share": float(np.mean([a == b for a, b in zip(*tokens, strict=True)])),
    }
    print_figures(figures, f"vLLM, {arguments.rows} rows", as_json=arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=VllmConfig().python)
    parser.add_argument("--policy", help="folder; a small one is made without it")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=130)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def write_policy(folder: Path) -> str:
    """Writes the policy of the quickstart, with the larger heads that vLLM wants on a CPU."""
    config = parse_config(
        overrides=["policy.hidden_size=128", "cold_start.steps=20", "cold_start.demonstrations=320"]
    )
    started = start_policy(config, given=None, seed=0)
    folder.mkdir()
    save_policy(folder, started.model, started.tokenizer, None)
    return str(folder)


def make_requests(policy: str, arguments: argparse.Namespace) -> Requests:
    """Draws contexts at random; no row stops before its limit, so that all is equally much."""
    vocabulary = json.loads((Path(policy) / "config.json").read_text())["vocab_size"]
    random = np.random.default_rng(0)
    rows, size = arguments.rows, arguments.context
    return Requests(
        contexts=random.integers(vocabulary, size=(rows, size)).tolist(),
        seeds=np.arange(rows, dtype=np.int64),
        max_new_tokens=np.full(rows, arguments.tokens, dtype=np.int64),
        stop_ids=(),
    )


def forward(
    folder: str, contexts: Sequence[list[int]], tokens: Sequence[list[int]]
) -> list[list[float]]:
    """Is the trainer's forward pass, for the check of the weights."""
    return forward_logprobs(load_policy(folder)[0], contexts, tokens)


def write_requests(policy: str, config: VllmConfig, requests: Requests, folder: Path) -> Path:
    """Writes what the other side is to do."""
    asked = folder / "asked.json"
    asked.write_text(
        json.dumps(
            {
                "policy": policy,
                "dtype": config.dtype,
                "gpu_memory_share": config.gpu_memory_share,
                "contexts": requests.contexts,
                "seeds": requests.seeds.tolist(),
                "limit": int(requests.max_new_tokens[0]),
            }
        )
    )
    (folder / "bare.py").write_text(BARE)
    return asked


@contextmanager
def bare_vllm(config: VllmConfig, asked: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts `LLM` in a process that samples once for every line that it is sent."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(EXTENSION),
        "OMP_NUM_THREADS": str(config.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [os.path.abspath(config.python), str(asked.with_name("bare.py")), str(asked)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as bare:
        yield bare
        assert bare.stdin is not None
        bare.stdin.close()


def take_turns(
    engine: VllmEngine,
    bare: "subprocess.Popen[str]",
    policy: str,
    requests: Requests,
    repeats: int,
) -> tuple[list[float], list[float], tuple[list[list[int]], list[list[int]]]]:
    """Returns the seconds of each repeat on both sides, and the tokens of the last one."""
    ours, theirs = [], []
    for repeat in range(repeats + 1):
        found = sample_bare(bare)
        engine.update_weights(policy, repeat)  # empties the prefix cache, as the other side does
        began = time.perf_counter()
        got = engine.generate(requests)
        ours.append(time.perf_counter() - began)
        theirs.append(found["seconds"])
    return ours[1:], theirs[1:], (got.token_ids, found["tokens"])


def sample_bare(bare: "subprocess.Popen[str]") -> dict[str, Any]:
    """Has the other side sample once."""
    assert bare.stdin is not None
    assert bare.stdout is not None
    bare.stdin.write("go\n")
    bare.stdin.flush()
    for line in bare.stdout:
        if line.startswith("RESULT"):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
            return found
    raise SystemExit("bare vLLM ended; what it wrote above says why")


if __name__ == "__main__":
    main()
