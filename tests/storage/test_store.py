import json
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import deleted, on_both, spoil, spoil_manifest
from polars.testing import assert_frame_equal
from run_builders import put_policy
from storage_builders import fingerprint, slot, turns, updates

from schemas.errors import StoreError
from schemas.refs import StageOutput, TableRef
from schemas.tables import TABLES
from storage import Store

Put = Callable[..., StageOutput]


def refuse_link(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_open_says_how_to_make_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store at .*new: .*train --store .*new"):
        Store.open(tmp_path / "new")


def test_open_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match="no store and not empty"):
        Store.open(tmp_path, create=True)


def test_open_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot open store .*file: Not a directory"):
        Store.open(tmp_path / "file", create=True)


def test_open_refuses_a_newer_format(store: Store) -> None:
    (store.root / "store.json").write_text('{"format": 3}')
    with pytest.raises(StoreError, match="format 3, this version reads 2: upgrade"):
        Store.open(store.root)


def test_open_refuses_the_format_of_an_early_version(store: Store) -> None:
    (store.root / "store.json").write_text('{"format": 1}')
    with pytest.raises(StoreError, match=r"format 1 of an early version.*train again"):
        Store.open(store.root)


def test_open_refuses_a_place_below_a_partition(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run=old"):
        Store.open(tmp_path / "run=old" / "store", create=True)


@on_both
def test_open_twice_is_the_same_store(store: Store, put: Put) -> None:
    put()
    assert Store.open(store.url, create=True).find(slot(), fingerprint()).is_hit


def test_open_removes_what_died_a_day_ago(store: Store) -> None:
    for name, age_s in (("old", 90_000), ("new", 0)):
        folder = store.root / "tmp" / name
        folder.mkdir(parents=True)
        os.utime(folder, (folder.stat().st_mtime - age_s,) * 2)
    Store.open(store.root)
    assert [p.name for p in (store.root / "tmp").iterdir()] == ["new"]


@on_both
def test_find_in_an_empty_slot_is_a_first_run(store: Store) -> None:
    found = store.find(slot(), fingerprint())
    assert (found.is_hit, found.reason) == (False, "first run")


@on_both
def test_find_hits_an_equal_fingerprint(store: Store, put: Put) -> None:
    output = put()
    found = store.find(slot(), fingerprint())
    assert (found.output, found.reason) == (output, "unchanged")


@on_both
def test_find_tells_why_a_stored_result_does_not_do(store: Store, put: Put) -> None:
    put()
    found = store.find(slot(), fingerprint(config={"gamma": 0.95}, seed=1))
    assert (found.output, found.reason) == (None, "config gamma: 0.9 -> 0.95; seed 0 -> 1")


@on_both
def test_write_gives_references_that_tell_rows_and_version(put: Put) -> None:
    ref = put(frame=updates(rows=3)).tables["updates"]
    assert ref.uri == "run=demo/iteration=0003/split=train/stage=optimisation/updates.parquet"
    assert (ref.name, ref.rows, ref.schema_version) == (
        "updates",
        3,
        TABLES["updates"].version,
    )


def test_write_leaves_a_manifest_without_host_or_user(store: Store) -> None:
    parent = TableRef(uri="u", name="advantages", digest="d", content="c", rows=1, schema_version=1)
    store.write(slot(), fingerprint(), tables={"updates": updates()}, seconds=2.5, parents=[parent])
    written = json.loads((store.root / slot().uri / "manifest.json").read_text())
    assert written["fingerprint_digest"] == fingerprint().digest
    assert written["parents"] == [{"uri": "u", "name": "advantages", "digest": "d", "content": "c"}]
    assert written["seconds"] == 2.5
    assert written["created_at"].endswith("Z")
    assert written["environment"]["machine"] == os.uname().machine
    assert written["environment"]["memory_mib"] > 100
    secrets = (os.uname().nodename, str(store.root), str(Path(__file__).parents[2]))
    assert not [secret for secret in secrets if secret in json.dumps(written)]


@on_both
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"rows": ', '"rows": 1'),
        ("updates.parquet", "updatfs.parquet"),
        ('"fingerprint_digest": "', '"fingerprint_digest": "0'),
        ('"seed": 0', '"seed": 1'),
        ('"seconds": 1.0', '"seconds": 9.0'),
    ],
)
def test_a_manifest_in_which_anything_was_changed_is_damaged(
    store: Store, put: Put, old: str, new: str
) -> None:
    put()

    def change(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    spoil_manifest(store, change)
    found = store.look(slot(), fingerprint())
    assert not found.is_hit
    assert "damaged file manifest.json" in found.reason
    with pytest.raises(StoreError, match=r"damaged file manifest\.json"):
        store.manifest(slot())


@pytest.mark.parametrize("column", ["seconds", "loss"])
def test_content_counts_all_but_what_was_measured(put: Put, column: str) -> None:
    frame = updates()
    first, second = (
        put(frame=frame.with_columns(pl.lit(value, pl.Float64).alias(column)), replace=True)
        for value in (1.0, 2.0)
    )
    one, other = first.tables["updates"], second.tables["updates"]
    assert one.digest != other.digest
    assert (one.content == other.content) == (column == "seconds")


@on_both
def test_content_is_the_digest_where_nothing_is_measured(store: Store) -> None:
    tables = {"turns": turns(("a", 0, 0))}
    output = store.write(slot(), fingerprint(), tables=tables, seconds=0, parents=[])
    assert output.tables["turns"].content == output.tables["turns"].digest
    checkpoint = put_policy(store, "other")
    assert checkpoint.content == checkpoint.digest


def test_write_refuses_a_missing_column_by_name(put: Put) -> None:
    with pytest.raises(StoreError, match=r"table updates .*'loss'"):
        put(frame=updates().drop("loss"))


def test_write_refuses_a_wrong_type_by_name(put: Put) -> None:
    with pytest.raises(StoreError, match=r"table updates .*'loss'.*Int64"):
        put(frame=updates().cast({"loss": pl.Int64}))


def test_write_refuses_a_broken_rule_by_name(store: Store) -> None:
    broken = turns(("a", 0, 0)).with_columns(logprobs=pl.lit([], dtype=pl.List(pl.Float32)))
    with pytest.raises(StoreError, match=r"table turns .*one_logprob_a_token"):
        store.write(slot(), fingerprint(), tables={"turns": broken}, seconds=0, parents=[])
    assert not (store.root / slot().uri).exists()


def test_write_refuses_an_unknown_table(store: Store) -> None:
    with pytest.raises(StoreError, match=r"table losses is unknown; known tables: problems,"):
        store.write(slot(), fingerprint(), tables={"losses": updates()}, seconds=0, parents=[])


@on_both
def test_write_gives_equal_bytes_for_equal_frames(put: Put) -> None:
    frame = updates(rows=200_000)
    first = put(slot(iteration=0), fingerprint(seed=1), frame=frame)
    second = put(slot(iteration=1), fingerprint(seed=2), frame=frame)
    assert first.tables["updates"].digest == second.tables["updates"].digest


def test_write_gives_equal_bytes_however_a_frame_was_put_together(put: Put) -> None:
    whole = updates(rows=20_000)
    parts = pl.concat([whole[:7], whole[7:12_000], whole[12_000:]], rechunk=False)
    assert parts.n_chunks() == 3
    first = put(slot(iteration=0), fingerprint(seed=1), frame=whole)
    second = put(slot(iteration=1), fingerprint(seed=2), frame=parts)
    assert first.tables["updates"].digest == second.tables["updates"].digest


def test_write_keeps_the_replaced_result(store: Store, put: Put) -> None:
    put(frame=updates(loss=0.1))
    put(of=fingerprint(seed=1), frame=updates(loss=0.2))
    replaced = store.root / "replaced" / fingerprint().digest
    assert [pl.read_parquet(p)["loss"][0] for p in replaced.rglob("*.parquet")] == [0.1]


@on_both
def test_find_takes_back_a_replaced_result(store: Store, put: Put) -> None:
    put(frame=updates(loss=0.1))
    put(of=fingerprint(seed=1), frame=updates(loss=0.2))
    found = store.find(slot(), fingerprint())
    assert found.output is not None
    assert found.reason == f"reused from {slot().uri} (replaced since)"
    assert store.read(found.output.tables["updates"])["loss"][0] == 0.1


def test_find_back_and_forth_piles_up_nothing(store: Store, put: Put) -> None:
    both = (fingerprint(), fingerprint(seed=1))
    for one in both:
        put(of=one, frame=updates(loss=one.seed or 0.1))
    for _ in range(3):
        assert all(store.find(slot(), one).is_hit for one in both)
    assert len(list((store.root / "replaced").glob("*/*"))) == 2


def test_find_without_index_still_takes_back_a_replaced_result(store: Store, put: Put) -> None:
    put()
    put(of=fingerprint(seed=1))
    for hint in (store.root / "index").rglob("*.json"):
        hint.unlink()
    assert store.find(slot(), fingerprint()).is_hit


def test_find_mends_a_missing_index(store: Store, put: Put) -> None:
    put()
    for hint in (store.root / "index").rglob("*.json"):
        hint.unlink()
    store.find(slot(), fingerprint())
    assert store.find(slot(run="other"), fingerprint()).is_hit


def test_find_adopts_across_runs_and_shares_bytes(store: Store) -> None:
    theirs = put_policy(store)
    found = store.find(slot(run="other"), fingerprint())
    assert found.reason == "reused from demo"
    assert found.output is not None
    assert found.output.checkpoint is not None
    assert found.output.checkpoint.digest == theirs.digest
    assert found.output.checkpoint.policy_version == 4
    ours = store.path(found.output.checkpoint) / "nested" / "weights.bin"
    assert ours.samefile(store.path(theirs) / "nested" / "weights.bin")
    manifest = store.manifest(slot(run="other"))
    assert manifest is not None
    assert (manifest.slot.run, manifest.adopted_from) == ("other", slot().uri)


def test_find_adopts_by_copy_where_links_are_refused(
    store: Store, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    monkeypatch.setattr(os, "link", refuse_link)
    assert store.find(slot(run="other"), fingerprint()).is_hit


@on_both
def test_find_does_not_adopt_a_damaged_result(store: Store, put: Put) -> None:
    spoil(store, put().tables["updates"])
    found = store.find(slot(run="other"), fingerprint())
    assert found.output is None
    assert found.reason == f"first run; stored result in {slot().uri}: damaged file updates.parquet"
    assert not store.has_results("other")


def test_find_does_not_trust_a_wrong_hint(store: Store, put: Put) -> None:
    put()
    put(slot(run="other"), fingerprint(seed=1))
    wanted = fingerprint(seed=2)
    hint = store.layout.index_file(wanted.digest)
    hint.parent.mkdir(parents=True)
    for uri in (slot().uri, "../outside", "nowhere"):
        hint.write_text(json.dumps({"uri": uri}))
        assert not store.find(slot(run="third"), wanted).is_hit


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["updates.parquet", "policy/nested/weights.bin", "manifest.json"])
@pytest.mark.parametrize(
    ("fault", "reason"), [(truncate, "damaged"), (Path.unlink, "missing")], ids=["cut", "deleted"]
)
def test_find_tells_a_spoilt_file_by_name(
    store: Store, file: str, fault: Callable[[Path], None], reason: str
) -> None:
    put_policy(store)
    fault(store.root / slot().uri / file)
    if file == "manifest.json" and reason == "damaged":  # one byte less: the last newline
        truncate(store.root / slot().uri / file)
    found = store.find(slot(), fingerprint())
    assert (found.output, found.reason) == (None, f"{reason} file {file}")


@pytest.mark.parametrize("file", ["updates.parquet", "policy/nested/weights.bin"])
def test_find_and_path_see_a_flipped_bit(store: Store, file: str) -> None:
    checkpoint = put_policy(store)
    ref = store.find(slot(), fingerprint()).output
    assert ref is not None
    flip_a_bit(store.root / slot().uri / file)
    assert store.find(slot(), fingerprint()).reason == f"damaged file {file}"
    with pytest.raises(StoreError, match=f"damaged file {file}"):
        store.path(checkpoint if "policy" in file else ref.tables["updates"])


@on_both
def test_write_mends_a_damaged_slot(store: Store, put: Put) -> None:
    spoil(store, put().tables["updates"])
    put()
    assert store.find(slot(), fingerprint()).reason == "unchanged"


def test_find_mends_a_damaged_slot_from_another_run(
    store: Store, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = put().tables["updates"]
    with monkeypatch.context() as without_links:
        without_links.setattr(os, "link", refuse_link)
        store.find(slot(run="other"), fingerprint())
    flip_a_bit(store.root / ref.uri)
    found = store.find(slot(), fingerprint())
    assert found.is_hit
    assert found.reason == ("reused from other (damaged file updates.parquet in its own slot)")


@on_both
def test_write_keeps_an_equal_right_result(store: Store, put: Put) -> None:
    first = put(frame=updates(loss=0.1))
    assert put(frame=updates(loss=0.2)) == first


def test_write_replaces_an_equal_result_when_asked(store: Store, put: Put) -> None:
    put(frame=updates(loss=0.1))
    ref = put(frame=updates(loss=0.2), replace=True).tables["updates"]
    assert store.read(ref)["loss"][0] == 0.2
    assert len(list((store.root / "replaced" / fingerprint().digest).iterdir())) == 1


@on_both
def test_read_refuses_a_missing_file(store: Store, put: Put) -> None:
    ref = put().tables["updates"]
    spoil(store, ref, deleted)
    with pytest.raises(StoreError, match=r"missing file .*updates\.parquet"):
        store.read(ref)


def test_read_tells_a_replaced_result_from_a_damaged_one(store: Store, put: Put) -> None:
    ref = put(frame=updates(loss=0.1)).tables["updates"]
    put(of=fingerprint(seed=1), frame=updates(loss=0.2))
    with pytest.raises(StoreError, match="holds a newer result"):
        store.read(ref)


@on_both
def test_read_and_scan_refuse_a_newer_schema(store: Store, put: Put) -> None:
    newer = put().tables["updates"].model_copy(update={"schema_version": 99})
    for verb in (store.read, store.scan):
        with pytest.raises(StoreError, match=r"newer version .*: upgrade turnledger"):
            verb(newer)


@on_both
def test_scan_reads_what_was_written(store: Store, put: Put) -> None:
    assert_frame_equal(store.scan(put().tables["updates"]).collect(), updates())


def test_path_sees_a_file_added_to_a_checkpoint(store: Store) -> None:
    checkpoint = put_policy(store)
    (store.path(checkpoint) / "extra").touch()
    with pytest.raises(StoreError, match="unexpected file policy/extra"):
        store.path(checkpoint)


logprobs = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.fixed_dictionaries(
    {
        "sample_index": st.integers(0, 2**31 - 1),
        "text": st.text(),
        "tokens": st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), logprobs)),
        "code": st.none() | st.text(),
        "parse_error": st.sampled_from([None, "syntax_error", "empty_code"]),
        "seed": st.integers(-(2**63), 2**63 - 1),
    }
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(rows, unique_by=lambda row: row["sample_index"], max_size=4))
def test_read_returns_the_frame_that_was_written(store: Store, drawn: list[dict]) -> None:
    schema = pl.Schema(TABLES["turns"].schema)
    frame = pl.DataFrame(
        [
            {
                **{name: value for name, value in row.items() if name != "tokens"},
                "task_id": "a",
                "turn_index": 0,
                "token_ids": [token for token, _ in row["tokens"]],
                "logprobs": [logprob for _, logprob in row["tokens"]],
                "finish_reason": "code",
                "reasoning": row["text"],
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": 0,
                "policy_version": 0,
            }
            for row in drawn
        ],
        schema=schema,
    )
    output = store.write(
        slot(), fingerprint(), tables={"turns": frame}, seconds=0, parents=[], replace=True
    )
    assert_frame_equal(store.read(output.tables["turns"]), frame, check_exact=True)
