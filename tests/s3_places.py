"""Where stores of tests are in an S3 server on loopback."""

import uuid
from pathlib import Path

import pytest


def use_s3(server: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """Sets the environment for an S3 server; returns a place in it for a store."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("TURNLEDGER_CACHE", str(folder / "cache"))
    return f"s3://ledger/{uuid.uuid4().hex}"
