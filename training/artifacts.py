"""Adapters as content-addressed files: a folder or S3, through fsspec. A name is the sha256 of what it holds."""

from __future__ import annotations

import hashlib
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
        fs, path = _open(url)
        if not fs.exists(path):
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            with fs.open(path + ".new", "wb") as file:
                file.write(data)
            fs.mv(path + ".new", path)
    except (OSError, ValueError, ImportError) as error:
        raise ArtifactError(f"{url}: can't be written ({error}); mend training.artifacts or its access") from error
    return url, digest


def get(url: str, sha256: str) -> bytes:
    """The bytes at ``url``; ArtifactError where they are missing or not what ``sha256`` says."""
    try:
        fs, path = _open(url)
        data = bytes(fs.cat_file(path))
    except (OSError, ValueError, ImportError) as error:
        raise ArtifactError(f"{url}: can't be read ({error})") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{url}: its sha256 is not the release's {sha256[:12]}…: torn or replaced")
    return data


def _open(url: str) -> tuple[Any, str]:
    fs, path = fsspec.core.url_to_fs(url)
    return fs, path
