"""Releases: the newest good one serves, anything else changes nothing."""

from __future__ import annotations

import hashlib
import logging
import resource
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.writer import Shape, load
from schemas.config import Settings
from schemas.release import Release
from streams.releases import Releases
from tests.tiny_model import lora, tiny


@pytest.fixture(scope="module")
def base() -> tuple[Shape, str]:
    made = load(tiny(), house=None)
    return made.shape, made.sha256


def release(file: Path, base: str, epoch: int, **changes: object) -> bytes:
    made = Release(f"r{epoch}", "c1", epoch, str(file), hashlib.sha256(file.read_bytes()).hexdigest(), base, 4, "2026-01-01T00:00:00Z")
    return msgspec.json.encode(msgspec.structs.replace(made, **changes))


def made(tmp_path: Path, base: tuple[Shape, str]) -> Releases:
    return Releases(Settings(home=str(tmp_path / "home")), *base, 8)


def test_the_newest_good_release_serves_and_a_bad_one_changes_nothing(tmp_path: Path, base: tuple[Shape, str]) -> None:
    releases = made(tmp_path, base)
    one, two = lora(tmp_path / "1.safetensors", base[1], seed=1), lora(tmp_path / "2.safetensors", base[1], seed=2)
    assert releases.choose("c1", "i") == ("base", None)
    assert releases.apply(release(one, base[1], 1))
    name, adapter = releases.choose("c1", "i")
    assert name == "r1" and adapter is not None
    assert releases.choose("c2", "i") == ("base", None)
    for bad in (
        release(two, base[1], 1),  # not newer
        release(two, "f" * 64, 2),  # another base
        release(two, base[1], 2, sha256="0" * 64),
        release(two, base[1], 2, sha256="../../x"),
        release(two, base[1], 2, artifact=str(tmp_path / "gone.safetensors"), sha256="1" * 64),
    ):
        assert not releases.apply(bad)
        assert releases.choose("c1", "i") == (name, adapter)
    with pytest.raises(msgspec.MsgspecError):  # ``follow`` names its place
        releases.apply(b"no release")
    assert releases.choose("c1", "i") == (name, adapter) and releases.refused == 6
    assert releases.apply(release(two, base[1], 2))
    assert releases.choose("c1", "i")[0] == "r2" and releases.serving() == {"base", "r2"}


def test_a_canary_gets_its_share_and_each_intent_stays_on_its_side(tmp_path: Path, base: tuple[Shape, str]) -> None:
    releases = made(tmp_path, base)
    one, two = lora(tmp_path / "1.safetensors", base[1], seed=1), lora(tmp_path / "2.safetensors", base[1], seed=2)
    releases.apply(release(one, base[1], 1))
    releases.apply(release(two, base[1], 2, share=0.25, parent="r1"))
    drawn = [releases.choose("c1", f"i{n}")[0] for n in range(2000)]
    assert set(drawn) == {"r1", "r2"} and 0.2 < drawn.count("r2") / 2000 < 0.3
    old = msgspec.json.decode(release(one, base[1], 1), type=Release).ancestor()
    again = made(tmp_path, base)  # after a restart the compacted topic holds the canary alone
    again.apply(release(two, base[1], 2, share=0.25, parent="r1", before=(old,)))
    assert [again.choose("c1", f"i{n}")[0] for n in range(2000)] == drawn
    assert {again.choose("c1", f"i{n}")[1] is None for n in range(50)} == {False}


@pytest.mark.parametrize("fault", ["missing", "hash", "base", "epoch", "nan", "truncated", "rank"])
def test_a_bad_release_is_refused_and_said_and_the_old_one_serves_on(
    tmp_path: Path, base: tuple[Shape, str], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = lora(tmp_path / "1.safetensors", base[1], seed=1), lora(tmp_path / "2.safetensors", base[1], seed=2)
    releases = made(tmp_path, base)
    assert releases.apply(release(good, base[1], 3))
    changes: dict[str, object] = {}
    if fault == "nan":
        tensors = load_file(str(bad))
        next(iter(tensors.values()))[0, 0] = np.nan
        save_file(tensors, str(bad), {"base_sha256": base[1], "rank": "4", "alpha": "8"})
    elif fault == "truncated":  # whole by its hash, torn all the same: it was torn before it was published
        bad.write_bytes(bad.read_bytes()[:-64])
    elif fault == "rank":
        lora(bad, base[1], rank=16, seed=2)
    elif fault == "missing":
        changes = {"artifact": str(tmp_path / "gone.safetensors")}
    elif fault == "hash":
        changes = {"sha256": "0" * 64}
    elif fault == "base":
        changes = {"base_sha256": "f" * 64}
    record = release(bad, base[1], 3 if fault == "epoch" else 4, **changes)
    serving = releases.choose("c1", "i")
    with caplog.at_level(logging.WARNING, "mailtide.writer"):
        assert not releases.apply(record)
    assert releases.choose("c1", "i") == serving and serving[0] == "r3" and releases.refused == 1
    assert len(caplog.messages) == 1 and "refused" in caplog.messages[0] and "\n" not in caplog.messages[0]
    if fault == "epoch":
        return
    old = msgspec.json.decode(release(good, base[1], 3), type=Release).ancestor()
    restarted = made(tmp_path, base)  # compaction left the bad record alone, which names what it came from
    assert restarted.apply(msgspec.json.encode(msgspec.structs.replace(msgspec.json.decode(record, type=Release), before=(old,))))
    assert restarted.choose("c1", "i")[0] == "r3" and restarted.choose("c1", "i")[1] is not None


def test_on_a_full_disk_a_verified_release_serves_and_a_restart_fetches_it_again(
    tmp_path: Path, base: tuple[Shape, str], caplog: pytest.LogCaptureFixture
) -> None:
    releases = made(tmp_path, base)
    one, two = lora(tmp_path / "1.safetensors", base[1], seed=1), lora(tmp_path / "2.safetensors", base[1], seed=2)
    assert releases.apply(release(one, base[1], 1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with caplog.at_level(logging.WARNING, "mailtide.writer"):
            assert releases.apply(release(two, base[1], 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert releases.choose("c1", "i")[0] == "r2" and len(list((tmp_path / "home" / "adapters").iterdir())) == 1
    assert len(caplog.messages) == 1 and "can't be kept (File too large), it is fetched again at the next start" in caplog.messages[0]
    assert made(tmp_path, base).apply(release(two, base[1], 2))
    assert len(list((tmp_path / "home" / "adapters").iterdir())) == 2


def test_a_restart_needs_no_artifact_store(tmp_path: Path, base: tuple[Shape, str]) -> None:
    file = lora(tmp_path / "1.safetensors", base[1])
    record = release(file, base[1], 1)
    assert made(tmp_path, base).apply(record)
    file.unlink()
    assert made(tmp_path, base).apply(record)
    kept = next((tmp_path / "home" / "adapters").glob("*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-5])
    assert not made(tmp_path, base).apply(record)  # torn, and nowhere to fetch it from
