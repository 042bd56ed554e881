"""Compares the vLLM engine with bare vLLM, offline and without HTTP, on the same requests.

Both sides run the same environment, policy, seeds and settings, in turn and never at once: first
our engine with its server, then `LLM.generate` in a process of its own, each after a batch that
warms it up. A short cold start makes the policy.

    python -m benchmarks.vllm --rows 128 --json
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.printing import print_figures
from schemas.config import VllmConfig, parse_config
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
    seconds = []
    for _ in range(asked["repeats"] + 1):
        model.reset_prefix_cache()
        began = time.perf_counter()
        done = model.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
    tokens = [list(row.outputs[0].token_ids) for row in done]
    print("RESULT" + json.dumps({"seconds": seconds[1:], "tokens": tokens}))
"""


def main() -> None:
    arguments = parse_arguments()
    config = VllmConfig(python=arguments.python, dtype=arguments.dtype)
    with tempfile.TemporaryDirectory() as folder:
        policy = arguments.policy or write_policy(Path(folder) / "policy")
        requests = make_requests(policy, arguments)
        ours, tokens = run_engine(policy, config, requests, arguments.repeats)
        bare = run_bare(policy, config, requests, arguments, Path(folder))
    sampled = arguments.rows * arguments.tokens
    medians = {"engine": statistics.median(ours), "bare": statistics.median(bare["seconds"])}
    figures = {
        "engine_tokens_s": sampled / medians["engine"],
        "bare_tokens_s": sampled / medians["bare"],
        "ratio": medians["bare"] / medians["engine"],
        "equal_rows_share": float(
            np.mean([a == b for a, b in zip(tokens, bare["tokens"], strict=True)])
        ),
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


def run_engine(
    policy: str, config: VllmConfig, requests: Requests, repeats: int
) -> tuple[list[float], list[list[int]]]:
    """Returns the seconds of each repeat and the tokens of the last one."""
    engine = VllmEngine(
        config, forward=lambda folder, *rows: forward_logprobs(load_policy(folder)[0], *rows)
    )
    engine.update_weights(policy, 0)
    engine.generate(requests)
    seconds = []
    for version in range(1, repeats + 1):
        engine.update_weights(policy, version)  # empties the prefix cache
        began = time.perf_counter()
        got = engine.generate(requests)
        seconds.append(time.perf_counter() - began)
    engine.close()
    return seconds, got.token_ids


def run_bare(
    policy: str,
    config: VllmConfig,
    requests: Requests,
    arguments: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """Returns the same of `LLM.generate`."""
    program, asked = folder / "bare.py", folder / "asked.json"
    program.write_text(BARE)
    asked.write_text(
        json.dumps(
            {
                "policy": policy,
                "dtype": config.dtype,
                "gpu_memory_share": config.gpu_memory_share,
                "contexts": requests.contexts,
                "seeds": requests.seeds.tolist(),
                "limit": arguments.tokens,
                "repeats": arguments.repeats,
            }
        )
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(EXTENSION),
        "OMP_NUM_THREADS": str(config.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [os.path.abspath(config.python), str(program), str(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    line = next((part for part in done.stdout.splitlines() if part.startswith("RESULT")), None)
    if line is None:
        raise SystemExit(f"bare vLLM failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
    return found


if __name__ == "__main__":
    main()
