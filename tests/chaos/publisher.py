"""The trainer's last step in a process of its own: a random adapter of the tiny model goes out as the next release of c0."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from mailtide.settings import load
from models.writer.base import fingerprint, locate
from tests.tiny_model import lora
from training import releases
from training.gate import Judgement
from training.service import Trainer


def main() -> None:
    """Publish once."""
    settings = load()
    before = releases.serving(settings).get("c0")
    base = fingerprint(locate(settings.writer.base_model))
    with tempfile.TemporaryDirectory() as folder:
        file = lora(Path(folder) / "made", base, rank=settings.training.rank, seed=1 + (before.epoch if before else 0))
        trainer = Trainer(settings, threading.Event())
        trainer._publish("c0", file.read_bytes(), base, before, Judgement({}, []), 10)
