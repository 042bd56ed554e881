"""What vLLM's own processes import: it guards the server and keeps reloaded weights right.

Imported in vLLM's environment, which has nothing of ours: only this folder is on its path.
"""

import hashlib
import os
import secrets
from typing import Any

from vllm import _custom_ops

# On a CPU, oneDNN's matrix products keep a packed copy of the weights, which `reload_weights`
# leaves behind: the server then samples from neither the old nor the new policy. This must be set
# before the model loads; a worker imports its extension before that. On a GPU nothing reads it.
_custom_ops._supports_onednn = False


class PolicyReports:
    """Methods that a worker gains, to be called over /collective_rpc."""

    def served_policy(self) -> dict[str, Any]:
        """Returns what the worker serves, so that another model or mode is noticed."""
        model = self.model_config  # type: ignore[attr-defined]  # the worker's own
        shape = model.hf_text_config.to_dict()
        numbers = {key: value for key, value in shape.items() if isinstance(value, int)}
        return {
            **numbers,
            "architectures": list(model.hf_config.architectures or []),
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": str(model.logprobs_mode),
        }


class RequireKey:
    """Lets nobody in without the key.

    vLLM itself asks for it below /v1 alone. What swaps weights lies elsewhere, and a port of the
    loopback address is open to every user of the machine.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._expected = hashlib.sha256(f"Bearer {os.environ['VLLM_API_KEY']}".encode()).digest()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes what bears the key on; answers 401 to all else."""
        if scope["type"] == "lifespan" or self._is_known(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            empty = [(b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 401, "headers": empty})
            await send({"type": "http.response.body", "body": b""})

    def _is_known(self, scope: Any) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(hashlib.sha256(given).digest(), self._expected)
