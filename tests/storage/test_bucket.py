"""A store in a bucket: damage, killed and rival writers, a server that fails."""

import http.server
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import FAULTS, Fault, client_of, objects_of, place_of, spoil, spoil_object
from processes import WRITER, heard, say
from storage_builders import fingerprint, slot, updates

from schemas.errors import StoreError, StoreUnavailable
from schemas.refs import CheckpointRef, StageOutput
from storage import Store
from storage.layout import blob_uri
from storage.verification import BLOCK_BYTES, SAMPLED_BLOCKS

Start = Callable[..., subprocess.Popen[str]]

READER = """
import sys
from schemas.refs import CheckpointRef
from storage import Store

store = Store.open(sys.argv[1])
ref = CheckpointRef.model_validate_json(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(store.path(ref), flush=True)
"""

FILES = {"config.json": b"{}", "nested/weights.bin": b"weights" * 1000}


def write_policy(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def put_policy(
    bucket: Store, writer: Callable[[Path], None] = write_policy
) -> tuple[StageOutput, CheckpointRef]:
    output = bucket.write(
        slot(),
        fingerprint(),
        tables={"updates": updates()},
        checkpoint_writer=writer,
        policy_version=4,
        seconds=1.0,
        parents=[],
    )
    assert output.checkpoint is not None
    return output, output.checkpoint


def blobs(bucket: Store) -> dict[str, str]:
    """Returns file name to key of the blobs of the one result."""
    manifest = bucket.manifest(slot())
    assert manifest is not None
    checkpoint = manifest.output(slot().uri).checkpoint
    assert checkpoint is not None
    keys = {name: blob_uri(file.digest) for name, file in manifest.files.items()}
    return {**keys, "policy": blob_uri(checkpoint.digest)}


def test_a_policy_comes_back_file_by_file(bucket: Store) -> None:
    _, checkpoint = put_policy(bucket)
    folder = bucket.path(checkpoint)
    assert {n: (folder / n).read_bytes() for n in FILES} == FILES
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [
        "config.json",
        "weights.bin",
    ]


def test_empty_files_come_back(bucket: Store) -> None:
    _, checkpoint = put_policy(bucket, lambda folder: (folder / "empty").touch())
    assert (bucket.path(checkpoint) / "empty").read_bytes() == b""


def test_two_processes_share_a_cache(bucket: Store, start: Start) -> None:
    _, checkpoint = put_policy(bucket)
    text = checkpoint.model_dump_json()
    readers = [start(READER, bucket.url, text) for _ in range(2)]
    folders = set(go_together(readers))
    assert folders == {str(bucket.path(checkpoint))}


def test_adopting_uploads_no_bytes_again(bucket: Store) -> None:
    put_policy(bucket)
    before = objects_of(bucket, "blobs/")
    found = bucket.find(slot(run="other"), fingerprint())
    assert found.reason == "reused from demo"
    assert objects_of(bucket, "blobs/") == before
    assert bucket.adopt(slot(), slot(run="third")) is not None
    assert objects_of(bucket, "blobs/") == before


@pytest.mark.parametrize(("fault", "word"), FAULTS)
@pytest.mark.parametrize("file", ["updates.parquet", "policy/nested/weights.bin", "policy"])
def test_a_spoilt_object_is_found_told_and_written_again(
    bucket: Store, fault: Fault, word: str, file: str
) -> None:
    output, checkpoint = put_policy(bucket)
    spoil_object(bucket, blobs(bucket)[file], fault)
    found = bucket.find(slot(), fingerprint())
    assert (found.reason, found.expected) == (f"{word} file {file}", output)
    ref = output.tables["updates"] if file == "updates.parquet" else checkpoint
    with pytest.raises(StoreError, match=f"{word} file s3://.*{ref.name}"):
        bucket.path(ref)
    put_policy(bucket)
    assert bucket.find(slot(), fingerprint()).reason == "unchanged"
    assert bucket.path(ref).exists()


def test_a_spoilt_manifest_is_told_and_kept_aside(bucket: Store) -> None:
    put_policy(bucket)
    spoil_object(bucket, f"{slot().uri}/manifest.json", lambda content: content[:-2])
    assert bucket.find(slot(), fingerprint()).reason == "damaged file manifest.json"
    with pytest.raises(StoreError, match=r"damaged file manifest\.json in s3://"):
        bucket.manifest(slot())
    put_policy(bucket)
    assert bucket.find(slot(), fingerprint()).reason == "unchanged"
    assert len(objects_of(bucket, "replaced/unknown/")) == 1


def test_a_sample_finds_damage_in_every_block_and_lost_bytes(bucket: Store) -> None:
    size = BLOCK_BYTES * (SAMPLED_BLOCKS + 1) + 17
    put_policy(bucket, lambda folder: (folder / "w").write_bytes(bytes(size)) and None)
    sampled = Store.open(bucket.url, verify="sampled")
    assert sampled.find(slot(), fingerprint()).reason == "unchanged"
    key = blobs(bucket)["policy/w"]
    spoil_object(bucket, key, lambda content: b"\1" + content[1:])
    assert bucket.find(slot(), fingerprint()).reason == "damaged file policy/w"
    spoil_object(bucket, key, lambda content: b"\1" * len(content))
    assert sampled.find(slot(), fingerprint()).reason == "damaged file policy/w"
    spoil_object(bucket, key, lambda content: bytes(size - 1))
    assert sampled.find(slot(), fingerprint()).reason == "damaged file policy/w"


def test_a_replaced_result_can_still_be_read(bucket: Store, tmp_path: Path) -> None:
    output, _ = put_policy(bucket)
    frame = updates(rows=3)
    again = fingerprint(seed=1)
    bucket.write(slot(), again, tables={"updates": frame}, seconds=0, parents=[])
    assert bucket.read(output.tables["updates"]).height == 2
    assert bucket.find(slot(), fingerprint()).reason.endswith("(replaced since)")


def test_replacing_back_and_forth_piles_up_nothing(bucket: Store) -> None:
    both = (fingerprint(), fingerprint(seed=1))
    for one in both:
        bucket.write(slot(), one, tables={"updates": updates()}, seconds=0, parents=[])
    for _ in range(2):
        assert all(bucket.find(slot(), one).is_hit for one in both)
    assert len(objects_of(bucket, "replaced/")) == 2


def test_a_result_is_found_without_its_hint(bucket: Store) -> None:
    put_policy(bucket)
    bucket.write(slot(), fingerprint(seed=1), tables={}, seconds=0, parents=[])
    for key in objects_of(bucket, "index/"):
        client_of(bucket).delete_object(**place_of(bucket, key))
    assert bucket.find(slot(), fingerprint()).is_hit


# ---- the local cache


def test_a_spoilt_copy_is_fetched_again(bucket: Store) -> None:
    output, checkpoint = put_policy(bucket)
    table = bucket.path(output.tables["updates"])
    table.write_bytes(b"damaged")
    assert bucket.read(output.tables["updates"]).height == 2
    weights = bucket.path(checkpoint) / "nested" / "weights.bin"
    weights.write_bytes(b"damaged")
    assert bucket.path(checkpoint) == weights.parent.parent
    assert weights.read_bytes() == FILES["nested/weights.bin"]


def test_what_is_in_the_cache_is_not_fetched_again(bucket: Store) -> None:
    output, _ = put_policy(bucket)
    bucket.path(output.tables["updates"])
    spoil(bucket, output.tables["updates"])
    assert bucket.read(output.tables["updates"]).height == 2


def test_a_cache_that_cannot_be_used_is_one_line(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TURNLEDGER_CACHE", str(tmp_path / "file"))
    store = Store.open(s3, create=True)
    with pytest.raises(StoreError, match=r"cannot write s3://.*: .*file/tmp.*: Not a directory$"):
        put_policy(store)


# ---- killed and rival writers


KILLED_BEFORE_EVERY_PUT = """
import os, signal, sys
from storage import Store
from storage_builders import fingerprint, slot, updates

def kill_before(step):
    from storage.objects import Objects
    left = [step]
    def counting(call):
        def counted(*args):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*args)
        return counted
    for name in ("put", "create", "exchange"):
        setattr(Objects, name, counting(getattr(Objects, name)))

def write(url, step):
    store = Store.open(url)
    kill_before(step)
    store.write(slot(), fingerprint(seed=step), tables={"updates": updates(rows=step + 1)},
        checkpoint_writer=lambda folder: (folder / "w").write_text(str(step)) and None,
        policy_version=1, seconds=0, parents=[])

# The client's threads start after the fork.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        write(sys.argv[1], int(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("before", ["empty", "older result"])
def test_slot_of_a_killed_writer_is_absent_or_whole(
    bucket: Store, start: Start, before: str
) -> None:
    """Kills a writer before each of its puts, until one write ends."""
    older = fingerprint(seed=1000)
    killer = start(KILLED_BEFORE_EVERY_PUT, bucket.url)
    outcomes = []
    for step in range(20):
        if before == "older result":
            bucket.write(slot(), older, tables={}, seconds=0, parents=[], replace=True)
        say(killer, str(step))
        was_killed = heard(killer) == str(-signal.SIGKILL)
        manifest = bucket.manifest(slot())
        if manifest is None:
            outcomes.append("absent")
        else:
            assert bucket.find(slot(), manifest.fingerprint).reason == "unchanged"
            outcomes.append("older" if manifest.fingerprint == older else "new")
        if before == "older result":
            assert bucket.look(slot(), older).is_hit
        if not was_killed:
            break
    assert outcomes[-1] == "new"
    assert len(outcomes) > 4
    assert set(outcomes) == {"new", "older" if before == "older result" else "absent"}


SLOW_WRITER = WRITER.replace("range(20)", "range(1)").replace("200_000", "100_000_000")


def test_writer_killed_in_mid_upload_leaves_nothing_to_be_seen(bucket: Store, start: Start) -> None:
    writer = start(SLOW_WRITER, bucket.url, "0.1", 0)
    assert heard(writer) == "ready"
    say(writer)
    deadline = time.monotonic() + 60
    name = place_of(bucket, "")["Bucket"]
    while not client_of(bucket).list_multipart_uploads(Bucket=name).get("Uploads"):
        assert time.monotonic() < deadline
    writer.kill()
    writer.wait()
    assert bucket.find(slot(), fingerprint(seed=0)).reason == "first run"
    assert not bucket.has_results("demo")
    second = start(WRITER, bucket.url, "0.1", 0)
    assert heard(second) == "ready"
    say(second)
    assert heard(second)
    assert bucket.find(slot(), fingerprint(seed=0)).is_hit


def test_an_unfinished_multipart_upload_of_a_manifest_is_invisible(bucket: Store) -> None:
    client, place = client_of(bucket), place_of(bucket, f"{slot().uri}/manifest.json")
    upload = client.create_multipart_upload(**place)["UploadId"]
    client.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"{")
    assert bucket.find(slot(), fingerprint()).reason == "first run"
    assert not bucket.has_results("demo")
    put_policy(bucket)
    assert bucket.find(slot(), fingerprint()).is_hit


def go_together(writers: list[subprocess.Popen[str]]) -> list[str]:
    assert [heard(writer) for writer in writers] == ["ready"] * len(writers)
    for writer in writers:
        say(writer)
    return [heard(writer) for writer in writers]


def test_four_writers_of_one_fingerprint_end_with_one_right_result(
    bucket: Store, start: Start
) -> None:
    losses = ("0.1", "0.2", "0.3", "0.4")
    digests = go_together([start(WRITER, bucket.url, loss, 0) for loss in losses])
    output = bucket.find(slot(), fingerprint(seed=0)).output
    assert output is not None
    assert set(digests) == {output.tables["updates"].digest}
    assert bucket.read(output.tables["updates"]).height == 20_000
    assert objects_of(bucket, "replaced/") == {}


def test_two_writers_of_one_slot_lose_nothing(bucket: Store, start: Start) -> None:
    go_together([start(WRITER, bucket.url, "0.1", seed) for seed in (1, 2)])
    (kept,) = objects_of(bucket, "replaced/")
    in_slot = bucket.manifest(slot())
    assert in_slot is not None
    seeds = {in_slot.fingerprint.seed} | {
        seed for seed in (1, 2) if fingerprint(seed=seed).digest in kept
    }
    assert seeds == {1, 2}
    assert all(bucket.look(slot(), fingerprint(seed=seed)).is_hit for seed in (1, 2))


# ---- places that are no store, and servers that fail


def test_open_says_how_to_make_a_store(s3: str) -> None:
    with pytest.raises(StoreError, match=f"no store at {s3}: .*train --store {s3}` makes one"):
        Store.open(s3)


def test_open_refuses_a_prefix_of_something_else(bucket: Store) -> None:
    client_of(bucket).put_object(**place_of(bucket, "mine/thesis.tex"), Body=b"")
    with pytest.raises(StoreError, match=r"is no store and not empty \(thesis.tex\)"):
        Store.open(f"{bucket.url}/mine", create=True)


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://ledger/a/../b", "s3://ledger/a?b"])
def test_open_refuses_what_is_no_address(s3: str, url: str) -> None:
    with pytest.raises(StoreError, match="is no address of a store"):
        Store.open(url)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [("127.0.0.1:9000", "is no address"), ("http://192.0.2.1:9000", "is not encrypted")],
)
def test_open_refuses_an_endpoint_that_cannot_be_meant(
    s3: str, monkeypatch: pytest.MonkeyPatch, endpoint: str, says: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError, match=f"^AWS_ENDPOINT_URL={endpoint} {says}: .*$"):
        Store.open(s3)


@pytest.mark.parametrize("place", [Path("s3://ledger/x"), "S3://ledger/x", "gs://ledger/x"])
def test_open_refuses_an_address_of_which_it_would_make_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"ledger/x is no address .* as text$"):
        Store.open(place, create=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bucket_is_one_line(s3: str) -> None:
    with pytest.raises(StoreError, match=r"^no bucket absent at http.*: make it, or check .*$"):
        Store.open("s3://absent/store", create=True)


def test_a_server_that_is_down_is_one_line_and_soon(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"^cannot read s3://.*check AWS_ENDPOINT_URL.*$"):
        Store.open(s3)
    assert time.monotonic() - started < 30


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """Starts a server that answers every request with one status and one error code."""
    servers = []

    def start(status: int, code: str) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(f"<Error><Code>{code}</Code></Error>".encode())

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_refused_keys_are_one_line(s3: str, answering: Callable[[int, str], None]) -> None:
    answering(403, "InvalidAccessKeyId")
    with pytest.raises(
        StoreError, match=r"^.*refuses the keys: check AWS_ACCESS_KEY_ID.*$"
    ) as told:
        Store.open(s3)
    assert not isinstance(told.value, StoreUnavailable)


def test_a_server_that_fails_is_told_as_worth_another_try(
    s3: str, answering: Callable[[int, str], None]
) -> None:
    answering(503, "SlowDown")
    with pytest.raises(StoreUnavailable, match=r"503 Service Unavailable"):
        Store.open(s3)


def test_a_manifest_in_a_bucket_names_no_key_and_no_endpoint(bucket: Store) -> None:
    put_policy(bucket)
    place = place_of(bucket, f"{slot().uri}/manifest.json")
    text = client_of(bucket).get_object(**place)["Body"].read().decode()
    secrets = (os.environ["AWS_ENDPOINT_URL"], "secret", os.uname().nodename)
    assert not [secret for secret in secrets if secret in text]
