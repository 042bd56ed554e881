"""How fast a run goes: tokens a second, and the time left, by the stage runs still to come."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from flows.catalogue import is_evaluated
from flows.events import StageEvent
from schemas.config import RunConfig
from schemas.refs import TableRef
from storage import Slot, Store
from storage.layout import Split

REMEMBERED = 16
"""Stage runs of a kind whose times count: what came long ago says little of what comes."""
SPANS = 256
"""Stage runs of all kinds from which it is told how much goes on beside each other."""
SAMPLED = 8
"""Rollout stage runs that the tokens a second are of."""

Span = tuple[float, float]
"""Begin and end, seconds since any fixed moment."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Stage runs that take about the same time."""

    split: Split
    stage: str
    turn: int | None

    @classmethod
    def of(cls, slot: Slot) -> "Kind":
        """Returns the kind of the stage run in a slot."""
        return cls(slot.split, slot.stage, slot.turn)


def expected_work(config: RunConfig, begin: int) -> Counter[Kind]:
    """Counts the stage runs of a training, the cold start left out.

    Args:
        config: Settings of the run.
        begin: Iteration that it begins after: 0, or the one at which a branch was rerun.
    """
    work: Counter[Kind] = Counter()
    for iteration in range(begin, config.iterations + 1):
        if iteration > begin:
            work += _iteration(config)
        if is_evaluated(iteration, config) and (iteration > begin or begin == 0):
            work += _evaluation(config)
    return work


def _iteration(config: RunConfig) -> Counter[Kind]:
    rollout = config.rollout
    further = rollout.resample_rounds
    shards = min(rollout.shards, rollout.prompts) + further * rollout.shards
    work = _sampling("train", rollout.max_turns, shards)
    for stage, count in (
        ("prompts", 1 + further),
        ("turn_rewards", shards),
        ("similarity", shards),
        ("advantages", 1),
        ("optimisation", 1),
    ):
        work[Kind("train", stage, None)] += count
    return work


def _evaluation(config: RunConfig) -> Counter[Kind]:
    asked = config.evaluation
    shards = min(asked.shards, asked.problems)
    work = _sampling("evaluation", config.rollout.max_turns, shards)
    for stage in ("prompts", "evaluation"):
        work[Kind("evaluation", stage, None)] += 1
    return work


def _sampling(split: Split, turns: int, shards: int) -> Counter[Kind]:
    work = Counter({Kind(split, "rollout", turn): shards for turn in range(turns)})
    return work + Counter({Kind(split, "execution", turn): shards for turn in range(turns - 1)})


def busy_s(spans: Iterable[Span]) -> float:
    """Returns the seconds in which at least one of several pieces of work went on."""
    busy, end = 0.0, float("-inf")
    for began, ended in sorted(spans):
        busy += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return busy


class Pace:
    """Learns from the stage runs that are done how long those still to come take.

    The time left is the sum of the mean times of all that is to come, times the share that stage
    runs beside each other leave of their sum.
    """

    def __init__(self, work: Counter[Kind], begin: int = 0) -> None:
        """Begins with nothing known.

        Args:
            work: Stage runs in all; none where that is not known, as in a rerun.
            begin: Iteration that the work begins after.
        """
        self._work, self._begin = work, begin
        self._done: set[Slot] = set()
        self._to_come = Counter(work)
        self._seconds: dict[Kind, deque[float]] = {}
        self._spans: deque[Span] = deque(maxlen=SPANS)
        self._sampled: deque[TableRef] = deque(maxlen=SAMPLED)
        self._last: datetime | None = None

    @property
    def share_done(self) -> float | None:
        """Share of the stage runs that are done, from 0 to 1; null where no work is expected."""
        total = self._work.total()
        return None if not total else 1 - self._to_come.total() / total

    def note(self, event: StageEvent) -> None:
        """Takes an event in."""
        slot, seconds = event.slot, event.computed_s
        if not event.is_done or slot.stage == "cold_start":
            return
        kind = Kind.of(slot)
        if seconds is not None:
            self._seconds.setdefault(kind, deque(maxlen=REMEMBERED)).append(seconds)
        if event.kind == "computed" and seconds is not None:
            ended = event.at.timestamp()
            self._spans.append((ended - seconds, ended))
            times = None if event.output is None else event.output.tables.get("generation_times")
            if times is not None and times.rows:
                self._sampled.append(times)
        is_expected = slot.iteration > self._begin or self._begin == 0
        if is_expected and slot not in self._done and self._to_come[kind] > 0:
            self._done.add(slot)
            self._to_come[kind] -= 1
        self._last = event.at if self._last is None else max(self._last, event.at)

    def left_s(self, now: datetime | None = None) -> float | None:
        """Estimates the seconds until the work is done; null while too little is known for that.

        Args:
            now: The moment that it is asked for; now, if left out.
        """
        sum_s = sum(end - begin for begin, end in self._spans)
        if not self._work or sum_s <= 0 or self._last is None:
            return None
        left = 0.0
        for kind, count in self._to_come.items():
            mean = self._mean_s(kind)
            if count and mean is None:
                return None
            left += count * (mean or 0.0)
        since = ((now or datetime.now(UTC)) - self._last).total_seconds()
        return max(0.0, left * busy_s(self._spans) / sum_s - max(0.0, since))

    def _mean_s(self, kind: Kind) -> float | None:
        known = self._seconds.get(kind)
        if known:
            return sum(known) / len(known)
        if kind.split == "train":
            return None
        # Before the first evaluation: it samples much as a training does.
        like = self._seconds.get(Kind("train", kind.stage, kind.turn))
        is_small = kind.stage == "evaluation"
        return sum(like) / len(like) if like else (0.0 if is_small else None)

    def tokens_per_s(self, store: Store) -> float | None:
        """Returns the tokens that were sampled a second of late, while any were sampled.

        Args:
            store: Where the times of the rollouts are.

        Raises:
            StoreError: If they cannot be read.
        """
        spans, tokens = [], 0
        for ref in self._sampled:
            for row in store.read(ref).iter_rows(named=True):
                spans.append((row["began_at"].timestamp(), row["ended_at"].timestamp()))
                tokens += row["tokens"]
        seconds = busy_s(spans)
        return tokens / seconds if seconds else None
