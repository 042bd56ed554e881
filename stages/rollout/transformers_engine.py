"""The embedded engine: batched decoding of any transformers causal language model.

Rows that are finished leave the batch when enough of them have gathered, and rows that wait take
their place: the longest contexts first, so that rows beside each other are of like length. Each
distinct context is prefilled once, however many samples share it. Randomness comes from one
counter-based stream a row, so a row's draws do not depend on its neighbours.

Calls are served one at a time: on one device a second batch beside the first only slows both, and
rows of other calls in a batch would make its rounding depend on who comes when.
"""

import threading
from collections.abc import Mapping
from functools import cached_property, lru_cache

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from schemas.errors import PolicyError
from stages.randomness import uniforms
from stages.rollout.decoding import Batch, Run, join
from stages.rollout.engine import Capabilities, Generations, Requests
from stages.rollout.kv_cache import bytes_per_token, gather
from stages.rollout.sampled_models import refuse_other_models
from stages.rollout.stop_strings import StopStrings

PREFILL_TOKENS = 8_192
"""Tokens of one prefill pass, padding included: bounds the memory of activations."""
PREFILL_TOKENS_ON_CPU = 1_024
"""The same on a CPU, where activations that leave the cache cost more than further passes."""
COMPACT_BELOW = 0.7
"""Finished rows are dropped when fewer than this share of the batch still runs."""
MIB = 2**20


class TransformersEngine:
    """Samples from a transformers model on its own device."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        policy_version: int,
        cache_mib: int = 2_048,
    ) -> None:
        """Wraps a model, which only `update_weights` changes.

        Args:
            model: Causal language model in evaluation mode.
            tokenizer: Knows what its tokens write.
            policy_version: Version written beside everything it samples.
            cache_mib: Most memory for keys and values of the rows in a batch; one row may take
                more.

        Raises:
            PolicyError: If the model does not attend to all of a context, or has no bound on it.
        """
        refuse_other_models(model.config, is_stateful=model._is_stateful)
        self._model = model
        self._tokenizer = tokenizer
        self._policy_version = policy_version
        self._cache_bytes = cache_mib * MIB
        self._one_at_a_time = threading.Lock()
        self._watcher = lru_cache(maxsize=4)(self._make_watcher)

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(live_weights=True, prefix_cache=False)

    @property
    def policy_version(self) -> int:
        """Version of the policy that samples."""
        return self._policy_version

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of a context with its continuation."""
        return int(self._model.config.get_text_config().max_position_embeddings)

    def update_weights(self, folder: str, policy_version: int) -> None:
        """Samples from another policy of the same architecture from now on.

        Raises:
            PolicyError: If the folder holds no such policy.
        """
        try:
            other = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype=self._model.dtype
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
            reason = str(error).strip().splitlines()[0]
            raise PolicyError(f"{folder} holds no weights for this policy: {reason}") from error
        weights = other.state_dict()
        if _shapes(weights) != _shapes(self._model.state_dict()):
            raise PolicyError(f"{folder} holds no weights for this policy: they have other shapes")
        with self._one_at_a_time:
            self._model.load_state_dict(weights)
            self._policy_version = policy_version

    def generate(self, requests: Requests) -> Generations:
        """Samples a continuation of every context.

        Args:
            requests: Contexts, each shorter than `max_context_tokens`.

        Returns:
            Sampled tokens with their log-probabilities, in the order of the requests.

        Raises:
            PolicyError: If the policy yields no numbers.
        """
        with self._one_at_a_time, torch.inference_mode():
            if not requests.contexts:
                return Generations(
                    token_ids=[], logprobs=[], stopped=[], policy_version=self._policy_version
                )
            return self._decode(requests)

    def _decode(self, requests: Requests) -> Generations:
        run = self._start(requests)
        lengths = [len(context) for context in requests.contexts]
        waiting = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        batch = self._admit(run, waiting, None)
        while batch is not None:
            token = run.sample(batch)
            running = int(batch.running.sum())
            has_room = running < COMPACT_BELOW * len(batch.rows)
            if running == 0:
                batch = None
            else:
                if has_room:
                    token = token[batch.running]
                    batch = join([batch], batch.running.nonzero()[:, 0])
                batch.logits = self._forward(batch, token)
            if waiting and has_room:
                batch = self._admit(run, waiting, batch)
        return run.result(self._policy_version)

    def _start(self, requests: Requests) -> Run:
        budget = int(requests.max_new_tokens.max())
        noise = torch.from_numpy(uniforms(requests.seeds, budget + 1)).to(self._model.device)
        watcher = self._watcher(requests.stop_strings) if requests.stop_strings else None
        return Run.start(requests, noise, watcher)

    def _admit(self, run: Run, waiting: list[int], batch: Batch | None) -> Batch | None:
        """Lets as many rows into the batch as the cache has room for; one at least if it is empty.

        Args:
            run: What is sampled.
            waiting: Rows that wait, the longest context first; those that are let in are removed.
            batch: Rows that run.
        """
        contexts = run.requests.contexts
        columns = len(contexts[waiting[0]]) + run.budget
        rows = 0
        if batch is not None:
            columns, rows = max(columns, batch.width + run.budget), len(batch.rows)
        free = self._cache_bytes // (columns * self._bytes_per_token) - rows
        if batch is None:
            free = max(free, 1)
        if free <= 0:
            return batch
        chosen, waiting[:] = sorted(waiting[:free]), waiting[free:]
        return self._prefill(run, chosen, batch)

    @cached_property
    def _bytes_per_token(self) -> int:
        cache, _ = self._prefill_part([torch.tensor([0])])
        return bytes_per_token(cache)

    def _make_watcher(self, texts: tuple[str, ...]) -> StopStrings:
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        return StopStrings(
            self._tokenizer, texts, vocabulary=int(vocabulary), device=self._model.device
        )

    def _forward(self, batch: Batch, token: torch.Tensor) -> torch.Tensor:
        """Feeds one token a row; returns the next logits, [rows, vocabulary]."""
        # Finished rows stay where they are: beyond the last position a model may know none.
        batch.positions += batch.running
        columns = batch.width + 1
        output = self._model(
            input_ids=token[:, None],
            attention_mask=self._mask(batch.visible[:, None, None, :columns]),
            position_ids=batch.positions[:, None],
            past_key_values=batch.cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _prefill(self, run: Run, rows: list[int], running: Batch | None) -> Batch:
        """Runs the distinct contexts of rows once and lays them out beside the running rows."""
        device = self._model.device
        distinct: dict[tuple[int, ...], int] = {}
        owner = [
            distinct.setdefault(tuple(run.requests.contexts[row]), len(distinct)) for row in rows
        ]
        contexts = [torch.tensor(context) for context in distinct]
        lengths = torch.tensor([len(context) for context in contexts])
        tokens_at_once = PREFILL_TOKENS_ON_CPU if device.type == "cpu" else PREFILL_TOKENS
        caches, logits, order = [], [], []
        by_length = torch.argsort(lengths, descending=True, stable=True).tolist()
        while by_length:
            rows_at_once = max(1, tokens_at_once // len(contexts[by_length[0]]))
            part, by_length = by_length[:rows_at_once], by_length[rows_at_once:]
            cache, last = self._prefill_part([contexts[i] for i in part])
            caches.append(cache)
            logits.append(last)
            order += part
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        source = place[torch.tensor(owner)].to(device)
        width = int(lengths.max())
        row_lengths = lengths[torch.tensor(owner)].to(device)
        capacity = width + run.budget
        new = Batch(
            rows=torch.tensor(rows, device=device),
            steps=torch.zeros(len(rows), dtype=torch.long, device=device),
            running=torch.ones(len(rows), dtype=torch.bool, device=device),
            logits=torch.cat(logits)[source],
            positions=row_lengths - 1,
            visible=torch.arange(capacity, device=device) >= width - row_lengths[:, None],
            cache=gather(caches, source, width=width, capacity=capacity),
        )
        if running is None:
            return new
        both = len(running.rows) + len(new.rows)
        return join([running, new], torch.arange(both, device=device))

    def _prefill_part(self, contexts: list[torch.Tensor]) -> tuple[DynamicCache, torch.Tensor]:
        """Prefills contexts padded on the left to the longest of them."""
        device = self._model.device
        width = max(len(context) for context in contexts)
        ids = torch.zeros((len(contexts), width), dtype=torch.long)
        for row, context in enumerate(contexts):
            ids[row, width - len(context) :] = context
        pads = width - torch.tensor([len(context) for context in contexts])
        columns = torch.arange(width)
        real = columns >= pads[:, None]
        mask = real[:, None, :] & (columns[None, :] <= columns[:, None])
        # A padding query sees itself: with nothing to see it would turn into NaN and spread.
        mask |= torch.eye(width, dtype=torch.bool)
        output = self._model(
            input_ids=ids.to(device),
            # Without one, the model attends causally by itself, and faster.
            attention_mask=self._written(mask[:, None].to(device)) if bool(pads.any()) else None,
            position_ids=(columns - pads[:, None]).clamp(min=0).to(device),
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )
        return output.past_key_values, output.logits[:, -1]

    def _mask(self, visible: torch.Tensor) -> torch.Tensor | None:
        """Returns the attention mask of one new token a row, as the model's attention takes it."""
        if bool(visible.all()):
            return None  # kernels without one are faster, and know of grouped heads
        return self._written(visible)

    def _written(self, visible: torch.Tensor) -> torch.Tensor:
        if self._model.config._attn_implementation == "sdpa":
            return visible
        hidden = torch.finfo(self._model.dtype).min
        return torch.zeros_like(visible, dtype=self._model.dtype).masked_fill_(~visible, hidden)


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}
