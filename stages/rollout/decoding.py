"""The rows of one call: those being decoded now, and what has been sampled of all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from schemas.errors import PolicyError
from stages.distribution import log_distribution
from stages.rollout.engine import Generations, Requests
from stages.rollout.kv_cache import gather
from stages.rollout.stop_strings import StopStrings


@dataclass(slots=True, kw_only=True)
class Batch:
    """Rows being decoded; all tensors share the first dimension."""

    rows: torch.Tensor  # [batch] position in the requests
    steps: torch.Tensor  # [batch] tokens sampled
    running: torch.Tensor  # [batch] not yet finished
    logits: torch.Tensor  # [batch, vocabulary] of the next token
    positions: torch.Tensor  # [batch] position of the last token fed
    visible: torch.Tensor  # [batch, columns] cache columns that hold the row's tokens
    cache: DynamicCache

    @property
    def width(self) -> int:
        """Columns of the cache that are in use."""
        return int(self.cache.get_seq_length())


def join(batches: Sequence[Batch], chosen: torch.Tensor) -> Batch:
    """Makes one batch of rows of several, without cache columns that none of them uses.

    Args:
        batches: One, to drop rows, or more.
        chosen: [rows] numbered through all batches in their order.
    """
    width = max(batch.width for batch in batches)
    room = max(batch.visible.shape[1] - batch.width for batch in batches)
    # What will be written after the columns in use is always visible, so columns move as one.
    visible = torch.cat([_padded(b.visible, width - b.width, width + room) for b in batches])
    visible = visible[chosen]
    first = int(visible.any(0).long().argmax())
    return Batch(
        rows=torch.cat([batch.rows for batch in batches])[chosen],
        steps=torch.cat([batch.steps for batch in batches])[chosen],
        running=torch.cat([batch.running for batch in batches])[chosen],
        logits=torch.cat([batch.logits for batch in batches])[chosen],
        positions=torch.cat([batch.positions for batch in batches])[chosen],
        visible=visible[:, first:],
        cache=gather(
            [batch.cache for batch in batches],
            chosen,
            width=width - first,
            capacity=width - first + room,
        ),
    )


def _padded(visible: torch.Tensor, left: int, columns: int) -> torch.Tensor:
    right = columns - left - visible.shape[1]
    hidden = visible.new_zeros((len(visible), left))
    return torch.cat([hidden, visible, visible.new_ones((len(visible), right))], dim=1)


@dataclass(slots=True, kw_only=True)
class Run:
    """All rows of one call."""

    requests: Requests
    noise: torch.Tensor  # [rows, steps] float64, even over [0, 1)
    limits: torch.Tensor  # [rows]
    stops: torch.Tensor  # [stop tokens]
    watcher: StopStrings | None
    watched: torch.Tensor | None  # [rows, stop texts]
    tokens: torch.Tensor  # [rows, steps]
    logprobs: torch.Tensor  # [rows, steps]
    lengths: torch.Tensor  # [rows]
    stopped: torch.Tensor  # [rows]

    @classmethod
    def start(cls, requests: Requests, noise: torch.Tensor, watcher: StopStrings | None) -> "Run":
        """Begins with nothing sampled.

        Args:
            requests: What to sample.
            noise: [rows, most new tokens + 1]: rows that have ended write into the last column
                until they leave the batch.
            watcher: Finds the stop texts; null without any.
        """
        device, count = noise.device, len(requests.contexts)
        return cls(
            requests=requests,
            noise=noise,
            limits=torch.from_numpy(requests.max_new_tokens).to(device),
            stops=torch.tensor(requests.stop_ids, dtype=torch.long, device=device),
            watcher=watcher,
            watched=None if watcher is None else watcher.start(count),
            tokens=torch.zeros(noise.shape, dtype=torch.long, device=device),
            logprobs=torch.zeros(noise.shape, dtype=torch.float32, device=device),
            lengths=torch.zeros(count, dtype=torch.long, device=device),
            stopped=torch.zeros(count, dtype=torch.bool, device=device),
        )

    @property
    def budget(self) -> int:
        """Most tokens that any row may sample."""
        return self.noise.shape[1] - 1

    def sample(self, batch: Batch) -> torch.Tensor:
        """Draws a token a row, notes it, and marks rows that end; returns the tokens, [batch]."""
        token, logprob = draw(batch.logits, self.noise[batch.rows, batch.steps], self.requests)
        self.tokens[batch.rows, batch.steps] = token
        self.logprobs[batch.rows, batch.steps] = logprob
        batch.steps += batch.running
        self.lengths[batch.rows] = batch.steps
        ends = torch.isin(token, self.stops)
        if self.watcher is not None and self.watched is not None:
            states = self.watcher.advance(self.watched[batch.rows], token)
            self.watched[batch.rows] = states
            ends |= self.watcher.ended(states)
        self.stopped[batch.rows] |= ends & batch.running
        batch.running &= ~ends & (self.limits[batch.rows] > batch.steps)
        return token

    def result(self, policy_version: int) -> Generations:
        """Returns what was sampled.

        Raises:
            PolicyError: If a log-probability is not finite.
        """
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        sampled = columns < self.lengths[:, None]
        if not bool(self.logprobs[sampled].isfinite().all()):
            raise PolicyError("the policy yields no finite log-probabilities: its weights diverged")
        ends = self.lengths.tolist()
        return Generations(
            token_ids=[row[:end] for row, end in zip(self.tokens.tolist(), ends, strict=True)],
            logprobs=[row[:end] for row, end in zip(self.logprobs.tolist(), ends, strict=True)],
            stopped=self.stopped.tolist(),
            policy_version=policy_version,
        )


def draw(
    logits: torch.Tensor, noise: torch.Tensor, requests: Requests
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one token a row by inverting the cumulative distribution at the row's noise.

    Args:
        logits: [rows, vocabulary].
        noise: [rows] float64, even over [0, 1).
        requests: Their temperature, top-p and top-k.

    Returns:
        Tokens and their log-probabilities, [rows] each.
    """
    if requests.temperature == 0:
        logprobs = log_distribution(logits, temperature=1.0)
        token = logprobs.argmax(dim=-1)
    else:
        logprobs = log_distribution(
            logits,
            temperature=requests.temperature,
            top_p=requests.top_p,
            top_k=requests.top_k,
        )
        cumulative = logprobs.double().exp().cumsum(dim=-1)
        point = noise * cumulative[:, -1]
        token = torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None])[:, 0]
