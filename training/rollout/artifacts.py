"""Adapters as content-addressed files: a folder or S3, through fsspec. A name is the sha256 of what it holds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import fsspec

from schemas.config import Settings
from schemas.errors import ArtifactError


def home_of(settings: Settings) -> str:
    """Where artifacts live: ``training.artifacts``, else ``<home>/artifacts``."""
    return settings.training.artifacts or str(Path(settings.home).resolve() / "artifacts")


def put(settings: Settings, data: bytes) -> tuple[str, str]:
    """Store ``data``; its URL and sha256. Storing the same bytes twice is harmless.

    Raises ArtifactError where the store refuses.
    """
    digest = hashlib.sha256(data).hexdigest()
    url = f"{home_of(settings).rstrip('/')}/{digest}.safetensors"
    try:
        fs, path = fsspec.core.url_to_fs(url)
        if not fs.exists(path):
            _write(fs, path, data)
    except Exception as error:  # each of fsspec's stores has its own errors
        raise ArtifactError(f"{url}: can't be written ({error}); mend training.artifacts or its access") from error
    return url, digest


def get(url: str, sha256: str) -> bytes:
    """The bytes at ``url``; ArtifactError where they are missing or not what ``sha256`` says."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
        data = bytes(fs.cat_file(path))
    except Exception as error:  # each of fsspec's stores has its own errors
        raise ArtifactError(f"{url}: can't be read ({error})") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{url}: its sha256 is not the release's {sha256[:12]}…: torn or replaced")
    return data


def _write(fs: Any, path: str, data: bytes) -> None:
    """Whole or not at all: an object store's write is so by itself, a folder's by its rename."""
    if "file" not in fs.protocol:
        fs.pipe_file(path, data)
        return
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fresh = f"{path}.{os.getpid()}.new"
    fs.pipe_file(fresh, data)
    fs.mv(fresh, path)
