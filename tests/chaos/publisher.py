"""The trainer's last two steps in a process of its own: a random adapter of the tiny model goes out as the next release of c0."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from mailtide.settings import load
from models.writer.base import fingerprint, locate
from schemas.mail import iso
from schemas.release import Release
from tests.tiny_model import lora
from training.rollout import artifacts, releases


def main() -> None:
    """Publish once."""
    settings = load()
    before = releases.serving(settings).get("c0")
    epoch = before.epoch + 1 if before else 1
    base = fingerprint(locate(settings.writer.base_model))
    with tempfile.TemporaryDirectory() as folder:
        made = lora(Path(folder) / "made", base, rank=settings.training.rank, seed=epoch, cluster="c0")
        url, digest = artifacts.put(settings, made.read_bytes())
    parent = before.release_id if before else None
    release = Release(f"c0-{digest[:12]}", "c0", epoch, url, digest, base, settings.training.rank, iso(time.time()), parent)
    releases.publish(settings, release)
