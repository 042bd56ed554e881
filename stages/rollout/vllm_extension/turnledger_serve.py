"""Starts vLLM's server, with what its platform needs: python -m turnledger_serve ARGUMENTS."""

import runpy
import sys

if __name__ == "__main__":
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # A prompt that is computed in parts makes vLLM 0.32 take back a random number, which the
        # generators of a CPU cannot: a request with a seed then ends the whole server.
        sys.argv.append("--no-enable-chunked-prefill")
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
