"""Adapters on a real S3 server: published, served, and refused where they were corrupted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import msgspec
import pytest
from moto.server import ThreadedMotoServer

from models.writer import load
from schemas.config import Settings, TrainingSettings
from schemas.errors import ArtifactError
from streams.writer.releases import Releases
from tests.tiny_model import lora, tiny
from training.rollout import artifacts
from training.rollout.lineage import successor


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket's URL on a server of its own."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="adapters")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield "s3://adapters/mailtide"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_adapters_on_s3(bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = load(tiny(), house=None)
    settings = Settings(home=str(tmp_path / "one"), training=TrainingSettings(artifacts=bucket))
    data = lora(tmp_path / "a.safetensors", base.sha256).read_bytes()
    url, digest = artifacts.put(settings, data)
    assert url == f"{bucket}/{digest}.safetensors" and artifacts.put(settings, data) == (url, digest)
    assert artifacts.get(url, digest) == data
    release = successor(None, "c1", url, digest, base.sha256, 4, "2026-01-01T00:00:00Z")
    record = msgspec.json.encode(release)

    first = Releases(settings, base.shape, base.sha256, 8)
    assert first.apply(record)
    name, adapter = first.choose("c1", "i")
    assert name == release.release_id and adapter is not None and adapter.sha256 == digest

    boto3.client("s3").put_object(Bucket="adapters", Key=f"mailtide/{digest}.safetensors", Body=data[:-8] + b"\0" * 8)
    with pytest.raises(ArtifactError, match="torn or replaced"):
        artifacts.get(url, digest)
    second = Releases(msgspec.structs.replace(settings, home=str(tmp_path / "two")), base.shape, base.sha256, 8)
    with caplog.at_level(logging.WARNING, "mailtide.writer"):
        assert not second.apply(record)
    assert "torn or replaced" in caplog.text and second.choose("c1", "i") == ("base", None)
    assert Releases(settings, base.shape, base.sha256, 8).apply(record)  # who had it whole needs no store

    boto3.client("s3").delete_object(Bucket="adapters", Key=f"mailtide/{digest}.safetensors")
    with pytest.raises(ArtifactError, match="can't be read"):
        artifacts.get(url, digest)
    nowhere = msgspec.structs.replace(settings, training=TrainingSettings(artifacts="s3://no-such-bucket/x"))
    with pytest.raises(ArtifactError, match=r"mend training\.artifacts"):
        artifacts.put(nowhere, data)
