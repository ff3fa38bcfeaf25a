"""Profiles merge, stay unreadable on disk, and are gone after an erasure."""

from __future__ import annotations

import base64
import os
import random
import resource
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Settings, StoreSettings
from schemas.errors import StoreError
from streams.profiles import Profile, Profiles, merged


def told(profile: Profile) -> Profile:
    """Without its times."""
    return msgspec.structs.replace(profile, said={})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path))


def test_traits_merge_in_order_and_null_takes_away(settings: Settings) -> None:
    store = Profiles.open(settings)
    store.put_many(
        [
            ("c1", {"email": " ann@shop.example ", "firstName": "Ann", "plan": "gold"}, 0.0),
            ("c1", {"firstName": "Anna", "plan": None, "age": 3}, 0.0),
        ]
    )
    store.put_many([("c1", {"timezone": "Europe/Berlin", "birthday": "1990-02-03"}, 0.0), ("c2", {"email": "bo@shop.example"}, 0.0)])
    store.put_many([("c1", {"timezone": "Mars/Olympus", "email": 5}, 0.0)])
    found = store.get_many(["c1", "c2", "c3", "c1"])
    assert told(found["c1"]) == Profile("ann@shop.example", "Anna", "", "Europe/Berlin", "1990-02-03", {"age": 3})
    assert found["c2"].email == "bo@shop.example"
    assert set(found) == {"c1", "c2"}
    store.close()
    again = Profiles.open(settings)
    assert again.get_many(["c1"])["c1"].first_name == "Anna"
    again.close()


@pytest.mark.parametrize("customer", ["u" * 1025, "🧁" * 257, "a\0b"], ids=["long", "long in bytes", "with a nought"])
def test_an_id_that_some_database_takes_for_no_key_has_a_profile(settings: Settings, customer: str) -> None:
    store = Profiles.open(settings)
    store.put_many([(customer, {"firstName": "Ann"}, 0.0), (customer + "2", {"firstName": "Bo"}, 0.0)])
    store.put_many([(customer, {"locale": "en"}, 0.0)])
    assert {name: told(profile) for name, profile in store.get_many([customer, customer + "2", "c"]).items()} == {
        customer: Profile(first_name="Ann", locale="en"),
        customer + "2": Profile(first_name="Bo"),
    }
    with sqlite3.connect(Path(settings.home) / "profiles.db") as raw:
        keys = [key for (key,) in raw.execute("SELECT customer FROM profiles")]
    raw.close()
    assert len(keys) == 2 and all(key.isascii() and key.isprintable() and len(key) <= 1024 for key in keys)
    assert store.erase(customer) and store.get_many([customer]) == {}
    store.close()


def test_a_full_disk_is_one_line_and_what_was_kept_stays(settings: Settings) -> None:
    store = Profiles.open(settings)
    store.put_many([("c0", {"email": "ann@shop.example"}, 0.0)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="the space on its disk") as caught:
            for n in range(1000):
                store.put_many([(f"c{n}", {"note": "x" * 900, "email": f"c{n}@shop.example"}, 0.0)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and "shop.example" not in str(caught.value)
    assert store.get_many(["c0"])["c0"].email in ("ann@shop.example", "c0@shop.example")
    store.put_many([("late", {"email": "late@shop.example"}, 0.0)])  # there is room again
    assert store.get_many(["late"])["late"].email == "late@shop.example"
    store.close()


def test_nothing_readable_rests_on_disk_and_the_key_is_ours_alone(settings: Settings, tmp_path: Path) -> None:
    store = Profiles.open(settings)
    store.put_many([("c1", {"email": "ann.very.secret@shop.example", "firstName": "Annabella"}, 0.0)])
    store.close()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert b"very.secret" not in file.read_bytes()
            assert b"Annabella" not in file.read_bytes()
    assert (tmp_path / "keys" / "master").stat().st_mode & 0o777 == 0o600


def test_an_erased_customer_is_gone_and_may_come_back(settings: Settings, tmp_path: Path) -> None:
    store = Profiles.open(settings)
    store.put_many([("c1", {"email": "ann@shop.example"}, 0.0), ("c2", {"email": "bo@shop.example"}, 0.0)])
    assert store.erase("c1")
    assert not store.erase("c1")
    assert set(store.get_many(["c1", "c2"])) == {"c2"}
    store.put_many([("c1", {"firstName": "Ann"}, 0.0)])
    assert told(store.get_many(["c1"])["c1"]) == Profile(first_name="Ann")
    store.close()


def test_another_master_key_opens_nothing(settings: Settings) -> None:
    store = Profiles.open(settings)
    store.put_many([("c1", {"email": "ann@shop.example"}, 0.0)])
    store.close()
    other = Profiles.open(Settings(home=settings.home, store=StoreSettings(key=base64.b64encode(os.urandom(32)).decode())))
    with pytest.raises(StoreError, match=r"store\.key"):
        other.get_many(["c1"])
    other.close()


@pytest.mark.parametrize("key", ["x", "AAAA", "****"])
def test_a_bad_key_is_named(settings: Settings, key: str) -> None:
    with pytest.raises(StoreError, match="32 bytes"):
        Profiles.open(Settings(home=settings.home, store=StoreSettings(key=key)))


def test_a_store_that_can_not_be_used_is_one_line(settings: Settings) -> None:
    for url in ("sqlite:////nowhere/at/all.db", "nonsense://x", "postgresql+psycopg://u:secret@127.0.0.1:1/x?connect_timeout=1"):
        with pytest.raises(StoreError) as caught:
            Profiles.open(Settings(home=settings.home, store=StoreSettings(profiles=url)))
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


values = st.sampled_from([None, "a@b.example", "c@d.example", "UTC", "no/zone", 5])


@given(st.lists(st.dictionaries(st.sampled_from(["email", "timezone", "firstName", "plan"]), values), max_size=6), st.randoms())
def test_the_newest_word_on_each_trait_counts_in_whatever_order_they_come(said: list[dict[str, Any]], shuffle: random.Random) -> None:
    def after(order: list[int]) -> Profile:
        profile = Profile()
        for place in order:
            profile = merged(profile, said[place], 100.0 + place)
        return profile

    mixed = list(range(len(said)))
    shuffle.shuffle(mixed)
    assert after(mixed) == after(sorted(mixed))


def test_merging_is_pure() -> None:
    before = Profile(email="a@b.example", traits={"x": 1})
    assert told(merged(before, {"x": 2, "email": None}, 0.0)) == Profile(traits={"x": 2})
    assert before.traits == {"x": 1}


def test_many_at_once(settings: Settings) -> None:
    store = Profiles.open(settings)
    store.put_many([(f"c{n}", {"firstName": str(n)}, 0.0) for n in range(1500)])
    assert len(store.get_many(f"c{n}" for n in range(2000))) == 1500
    store.close()


def test_stages_that_open_it_first_together_share_one_key(tmp_path: Path) -> None:
    """One worker's stages begin at once, in threads: each must be able to read what the others wrote."""
    for round_ in range(20):
        home = Settings(home=str(tmp_path / str(round_)))
        barrier = threading.Barrier(4)

        def begin(number: int, home: Settings = home, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            store = Profiles.open(home)
            store.put_many([(f"c{number}", {"firstName": str(number)}, 0.0)])
            store.close()

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(begin, range(4)))
        again = Profiles.open(home)
        assert {name: found.first_name for name, found in again.get_many(f"c{n}" for n in range(4)).items()} == {
            f"c{n}": str(n) for n in range(4)
        }
        again.close()
        assert [file.name for file in (tmp_path / str(round_) / "keys").iterdir()] == ["master"]


def test_the_store_is_for_its_owner_alone_also_where_an_earlier_release_made_it(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path / "home"))
    Profiles.open(settings).close()
    path = Path(settings.home) / "profiles.db"
    path.chmod(0o644)
    path.parent.chmod(0o755)
    Profiles.open(settings).close()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
