"""Stores in a folder and in a bucket alike: where tests run on both, and how they spoil files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from storage_builders import slot

from schemas.refs import Ref
from storage import Slot, Store
from storage.digests import folder_digest, json_digest
from storage.layout import blob_uri

on_both = pytest.mark.parametrize("store", ["folder", "bucket"], indirect=True)
"""Runs a test on a store in a folder and on one in a bucket."""

Fault = Callable[[bytes], bytes | None]
"""Turns the content of a file into another one; null deletes the file."""


def truncated(content: bytes) -> bytes:
    return content[:-1]


def bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def deleted(content: bytes) -> None:
    return None


FAULTS: list[tuple[Fault, str]] = [
    (truncated, "damaged"),
    (bit_flipped, "damaged"),
    (deleted, "missing"),
]
"""Each with the word by which it is told."""


def spoil(store: Store, ref: Ref, fault: Fault = bit_flipped) -> None:
    """Spoils the bytes of a table, behind the store's back."""
    if not store.url.startswith("s3://"):
        path = Path(store.url) / ref.uri
        content = fault(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)
        return
    spoil_object(store, blob_uri(ref.digest), fault)


def spoil_manifest(store: Store, fault: Fault, at: Slot | None = None) -> None:
    """Spoils the manifest of a slot."""
    uri = f"{(at or slot()).uri}/manifest.json"
    if store.url.startswith("s3://"):
        spoil_object(store, uri, fault)
        return
    path = store.root / uri
    content = fault(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)


def resealed(fault: Callable[[str], str]) -> Fault:
    """Changes a manifest and gives it the digest of what it says now, as another version would."""

    def fault_of(content: bytes) -> bytes:
        values = json.loads(fault(content.decode()))
        values.pop("digest")
        return json.dumps({**values, "digest": json_digest(values)}).encode()

    return fault_of


def spoil_object(store: Store, key: str, fault: Fault = bit_flipped) -> None:
    """Spoils one object of a bucket."""
    client, place = client_of(store), place_of(store, key)
    content = fault(client.get_object(**place)["Body"].read())
    if content is None:
        client.delete_object(**place)
    else:
        client.put_object(**place, Body=content)


def state_of(store: Store) -> str:
    """Returns a digest of everything in a store."""
    if not store.url.startswith("s3://"):
        return folder_digest(store.root)
    return json_digest(objects_of(store))


def objects_of(store: Store, below: str = "") -> dict[str, str]:
    """Returns key and etag of every object of a store in a bucket, as another client sees them."""
    parts = urlsplit(store.url)
    start = parts.path.strip("/") + "/"
    pages = (
        client_of(store)
        .get_paginator("list_objects_v2")
        .paginate(Bucket=parts.netloc, Prefix=start + below)
    )
    found = [entry for page in pages for entry in page.get("Contents", [])]
    return {entry["Key"].removeprefix(start): entry["ETag"] for entry in found}


def place_of(store: Store, key: str) -> dict[str, str]:
    """Returns the arguments by which boto3 names an object of a store."""
    parts = urlsplit(store.url)
    return {"Bucket": parts.netloc, "Key": f"{parts.path.strip('/')}/{key}"}


def client_of(store: Store) -> Any:
    """Returns a client of another make than the store's own."""
    return boto3.client("s3")
