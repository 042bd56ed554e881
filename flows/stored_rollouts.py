"""Rollouts as they are stored, and their results taken over into a branch."""

from dataclasses import dataclass

from flows.adoption import taken_over
from flows.binding import Place
from flows.rollouts import Chain, further_shards, shards_of
from flows.sessions import stored_config
from flows.task_inputs import Shard, Trajectories
from schemas.errors import StoreError
from schemas.refs import StageOutput, TableRef
from storage import Slot


@dataclass(frozen=True, slots=True)
class StoredChain:
    """What is stored whole of one shard of a rollout."""

    round_index: int
    shard: Shard
    turns: int
    """The code of all but the last was executed: nobody would see what that one shows."""


def stored_chains(old: Place) -> list[StoredChain]:
    """Returns the shards of a stored rollout, every result of which is there.

    Raises:
        StoreError: If there is no rollout, or one that was interrupted or has lost a result. What
            builds on it would take trajectories for finished that are not.
    """
    store = old.open()
    slot = old.slot("prompts")
    manifest = store.manifest(slot)
    if manifest is None:
        raise StoreError(f"run {old.run} holds no rollout of iteration {old.iteration}")
    config = stored_config(store.run_record(old.run)).rollout
    groups = manifest.output(slot.uri).tables["prompts"].rows
    rounds = [shards_of(config.shards, groups)]
    for _ in range(config.resample_rounds):
        rounds.append(further_shards(config.shards, before=sum(map(len, rounds))))
    chains = [
        StoredChain(index, shard, config.max_turns)
        for index, shards in enumerate(rounds)
        for shard in shards
    ]
    needed = [_prompts_slot(old, index) for index in range(1, len(rounds))]
    for stage, turns in (("rollout", config.max_turns), ("execution", config.max_turns - 1)):
        needed += [
            old.slot(stage, shard=chain.shard.number, turn=turn)
            for chain in chains
            for turn in range(turns)
        ]
    for slot in needed:
        if store.manifest(slot) is None:
            raise StoreError(
                f"the rollout of iteration {old.iteration} in run {old.run} is not complete, "
                f"{slot.uri} is missing: `turnledger train --run {old.run}` makes it"
            )
    return chains


def _prompts_slot(place: Place, round_index: int) -> Slot:
    return place.slot("prompts", shard=round_index or None)


def taken_prompts(old: Place, new: Place, round_index: int) -> TableRef:
    """Takes over the prompts of a round."""
    source, target = (_prompts_slot(place, round_index) for place in (old, new))
    return taken_over(source, new, target).tables["prompts"]


def stored_turns(old: Place, stage: str, shard: Shard, count: int) -> list[StageOutput]:
    """Returns what a stage stored for each turn of a shard, in their order."""
    slots = [old.slot(stage, shard=shard.number, turn=turn) for turn in range(count)]
    manifests = [old.open().manifest(slot) for slot in slots]
    return [m.output(slot.uri) for slot, m in zip(slots, manifests, strict=True) if m is not None]


def stored_trajectories(place: Place) -> Trajectories:
    """Returns references to a whole stored rollout.

    Raises:
        StoreError: If there is none, or one that is not whole.
    """
    chains = stored_chains(place)
    slots = [_prompts_slot(place, number) for number in sorted({c.round_index for c in chains})]
    manifests = [place.open().manifest(slot) for slot in slots]
    return Trajectories.of(
        [
            manifest.output(slot.uri).tables["prompts"]
            for slot, manifest in zip(slots, manifests, strict=True)
            if manifest is not None
        ],
        [out for c in chains for out in stored_turns(place, "rollout", c.shard, c.turns)],
        [out for c in chains for out in stored_turns(place, "execution", c.shard, c.turns - 1)],
    )


def taken_turns(old: Place, new: Place, stage: str, shard: Shard, count: int) -> list[StageOutput]:
    """Takes over what a stage stored for each turn of a shard."""
    return [
        taken_over(
            old.slot(stage, shard=shard.number, turn=turn),
            new,
            new.slot(stage, shard=shard.number, turn=turn),
        )
        for turn in range(count)
    ]


def taken_shards(old: Place, new: Place, stage: str, chains: list[Chain]) -> list[StageOutput]:
    """Takes over what a stage stored for each shard."""
    return [
        taken_over(
            old.slot(stage, shard=chain.shard.number),
            new,
            new.slot(stage, shard=chain.shard.number),
        )
        for chain in chains
    ]
