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

from models.learning.clause_odds import MOST
from models.writer import Shape, load
from schemas.config import Settings
from schemas.release import Release
from streams.writer.releases import Releases
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
    assert releases.choose("c1", "i")[0] == "r2" and releases.serving().keys() == {"base", "r2"}


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


def test_newer_odds_lean_the_adapter_in_hand_and_bad_ones_change_nothing(
    tmp_path: Path, base: tuple[Shape, str], caplog: pytest.LogCaptureFixture
) -> None:
    releases = made(tmp_path, base)
    one = lora(tmp_path / "1.safetensors", base[1], odds='{"x": 1.0}')
    first, digest = release(one, base[1], 1), hashlib.sha256(one.read_bytes()).hexdigest()

    def newer(epoch: int, **odds: float) -> bytes:
        return msgspec.json.encode(msgspec.structs.replace(msgspec.json.decode(first, type=Release), epoch=epoch, odds=odds))

    assert releases.apply(first)
    name, began = releases.choose("c1", "i")
    files = [one, *(tmp_path / "home" / "adapters").iterdir()]
    for file in files:
        file.rename(file.with_suffix(".away"))
    assert releases.apply(newer(2, x=-2.0, y=3.0))  # no file was there to read
    again, leans = releases.choose("c1", "i")
    assert again == name == "r1" and began is not None and leans is not None
    assert (leans.sha256, leans.odds, began.odds) == (digest, {"x": -2.0, "y": 3.0}, {"x": 1.0})
    assert all(new is old for new, old in zip((*leans.a, *leans.b), (*began.a, *began.b), strict=True))
    assert releases.serving()["r1"] is leans
    with caplog.at_level(logging.WARNING, "mailtide.writer"):
        assert not releases.apply(newer(3, x=MOST * 1.01))
    assert releases.choose("c1", "i")[1] is leans and releases.refused == 1
    assert len(caplog.messages) == 1 and "refused: odds of more than" in caplog.messages[0]
    for file in files:
        file.with_suffix(".away").rename(file)
    restarted = made(tmp_path, base)
    assert restarted.apply(newer(2, x=-2.0, y=3.0))
    found = restarted.choose("c1", "i")[1]
    assert found is not None and found.odds == leans.odds
    assert releases.apply(newer(4))  # back to the file's own
    own = releases.choose("c1", "i")[1]
    assert own is not None and own.odds == {"x": 1.0}
    bad_alone = made(tmp_path, base)  # compaction left nothing else: the file is whole all the same
    assert bad_alone.apply(newer(3, x=MOST * 1.01))
    found = bad_alone.choose("c1", "i")[1]
    assert found is not None and found.odds == {"x": 1.0}


def test_a_canary_with_newer_odds_leaves_its_parent_beside_it(tmp_path: Path, base: tuple[Shape, str]) -> None:
    releases = made(tmp_path, base)
    one, two = lora(tmp_path / "1.safetensors", base[1], seed=1), lora(tmp_path / "2.safetensors", base[1], seed=2)
    releases.apply(release(one, base[1], 1))
    releases.apply(release(two, base[1], 2, share=0.25, parent="r1"))
    before = [releases.choose("c1", f"i{n}") for n in range(200)]
    releases.apply(release(two, base[1], 3, release_id="r2", share=0.25, parent="r1", odds={"x": 1.0}))
    after = [releases.choose("c1", f"i{n}") for n in range(200)]
    assert [name for name, _ in after] == [name for name, _ in before] and {name for name, _ in after} == {"r1", "r2"}
    for (name, old), (_, new) in zip(before, after, strict=True):
        assert (new is old) if name == "r1" else (new is not None and new.odds == {"x": 1.0})


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
