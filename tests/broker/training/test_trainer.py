"""The training service on a real Kafka, with the tiny model: killed anywhere it goes on; several share the clusters; harm goes back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from mailtide.cli.training import listing, rollback
from mailtide.settings import problems_and_settings
from models.phrasebook.book import Book
from models.writer.base import load
from schemas.config import Settings
from schemas.errors import MailtideError
from schemas.learning import Vector
from schemas.mail import Choice, Delivery, Feedback, encode, iso
from schemas.release import Cluster, Release, Snapshot
from schemas.topics import CLUSTERS, DELIVERIES, FEEDBACK, VECTORS
from streams.writer.releases import Releases
from tests.broker.training.trainers import environment, teach, tuned
from tests.tiny_model import lora, tiny
from training.feedback.examples import ExampleRow, follow, rows
from training.refit.search import best_settings
from training.rollout import artifacts, releases
from training.rollout.lineage import reverted, successor
from training.service import Trainer

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1200)]  # seconds on an idle machine are minutes on a crowded one


@contextmanager
def trainer(settings: Settings) -> Iterator[Trainer]:
    made = Trainer(settings, threading.Event())
    try:
        yield made
    finally:
        made.close()


def put(settings: Settings, topic: str, *values: Any) -> None:
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    for value in values:
        producer.send(settings.kafka.topic(topic), encode(value), b"k", partition=0)
    producer.flush()
    producer.close()


def refits(settings: Settings) -> list[dict[str, Any]]:
    file = Path(settings.home) / "training" / "refits.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait(until: Callable[[], bool], watched: list[subprocess.Popen[bytes]], within: float = 1000.0) -> None:
    end = time.monotonic() + within
    while not until():
        assert all(process.poll() is None for process in watched), "a trainer ended"
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.1)


def test_a_trainer_killed_anywhere_goes_on_and_publishes_once(settings: Settings) -> None:
    ready = tuned(settings)
    teach(ready, "c1", 40)
    deaths = ["fitting", "writing the artifact", "before the record", "after the record"]
    subprocess.run([sys.executable, "-m", "tests.broker.training.trainers", *deaths], env=environment(ready), check=True)
    done = refits(ready)
    # Killed in its seventh step it went on from the fifth, and after that no step was done twice.
    assert [one["resumed_at"] for one in done] == [5, 10, 10]
    assert all(one["passed"] for one in done), done
    assert len({json.dumps(one["metrics"]["held_out_loss"]) for one in done}) == 1
    (published,) = releases.history(ready)["c1"]
    artifacts.get(published.artifact, published.sha256)
    folder = Path(published.artifact).parent
    assert [file.name for file in folder.glob("*.safetensors")] == [f"{published.sha256}.safetensors"]
    assert len(list(folder.glob("*.new"))) == 1  # the half that a killed one left: nothing names it
    with trainer(ready) as after:
        assert after.due(after.look(), scheduled=True) == {}  # all is learned: the next start repeats nothing
        teach(ready, "c1", 20, start=40)
        found = after.look()
        assert after.due(found, scheduled=False) == {"c1": "20 new examples"}
        (judged,) = after.round(found)
        assert "replay_gain" in judged.metrics
    assert not list((Path(ready.home) / "training" / "clusters" / "c1").glob("*.pt"))


def test_two_trainers_share_the_clusters_and_one_takes_over_what_the_other_leaves(settings: Settings, tmp_path: Path) -> None:
    quick = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, session_timeout=6.0))
    places = [msgspec.structs.replace(quick, home=str(tmp_path / name)) for name in "ab"]
    homes = [tuned(place, artifacts=str(tmp_path / "artifacts"), steps=5) for place in places]
    command = [sys.executable, "-m", "mailtide", "train"]
    running = [subprocess.Popen(command, env=environment(home), stderr=subprocess.DEVNULL) for home in homes]
    clusters = [f"c{n}" for n in range(6)]
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap)
    try:
        group = settings.kafka.topic("mailtide-trainer")

        def members() -> int:
            try:
                found = admin.describe_groups([group])[group]["members"]
            except KafkaError:  # the broker is still making the groups' own topic
                return 0
            return sum(bool(member["member_assignment"]) for member in found)

        wait(lambda: members() == 2, running)
        for cluster in clusters:
            teach(homes[0], cluster, 24)
        wait(lambda: set(releases.history(homes[0])) == set(clusters), running)
        # A cluster may change hands while the group settles: both fit it then, and one alone publishes.
        assert all(len(line) == 1 for line in releases.history(homes[0]).values())
        assert refits(homes[0]) and refits(homes[1])
        running[0].kill()
        for cluster in clusters:
            teach(homes[0], cluster, 24, start=24)
        wait(lambda: {one["cluster"] for one in refits(homes[1]) if one["examples"] == 48} == set(clusters), running[1:])
    finally:
        for process in running:
            process.kill()
            process.wait()
        admin.close()
    for line in releases.history(homes[0]).values():
        assert [one.epoch for one in line] == list(range(1, len(line) + 1))


def mails(release: str, count: int, start: int = 0, origin: str = "generated", **guard: str) -> list[Delivery]:
    now = iso(time.time())
    return [
        Delivery(f"{release}-{n}", f"c {n}", "welcome", "c1", release, origin, "guided", "sent", "m", now, now, now, guard=guard)  # type: ignore[arg-type]
        for n in range(start, start + count)
    ]


def test_a_canary_is_promoted_or_goes_back_by_what_its_mails_brought(settings: Settings) -> None:
    ready = tuned(settings, canary=0.25, canary_mails=40)
    one = successor(None, "c1", "/a/1", "1" * 64, "b" * 64, 4, iso(time.time()))
    two = successor(one, "c1", "/a/2", "2" * 64, "b" * 64, 4, iso(time.time()), share=0.25)
    releases.publish(ready, one)
    releases.publish(ready, two)
    complaint = Feedback(f"{two.release_id}-0", "c 0", "complained", iso(time.time()))
    with trainer(ready) as watching:
        put(ready, FEEDBACK, complaint, complaint)  # read before its mail, and twice: once is what counts
        put(ready, DELIVERIES, *mails(one.release_id, 400), *mails(two.release_id, 39))
        watching.look()
        assert watching.watch.tally("c1", two.release_id) == (39, 0, 39, 1, 0)
        assert watching.watch.serving["c1"] == two
        put(ready, DELIVERIES, *mails(two.release_id, 30, start=39))
        watching.look()
        whole = watching.watch.serving["c1"]
        assert (whole.release_id, whole.share, whole.epoch) == (two.release_id, 1.0, 3)
        # Later it turns bad: the guard takes none of its drafts, and templates go.
        put(ready, DELIVERIES, *mails(two.release_id, 30, start=100, origin="template", harm="stupid"))
        watching.look()
        back = watching.watch.serving["c1"]
        assert (back.release_id, back.rolled_back_from, back.epoch) == (one.release_id, two.release_id, 4)
        assert back.why.startswith("guard refusals: 30 of")
        watching.look()
        assert watching.watch.serving["c1"] == back
    assert releases.serving(ready)["c1"] == back
    by_hand = rollback(ready, "c1")  # before the first release is the base alone
    assert (by_hand["release_id"], by_hand["artifact"], by_hand["epoch"]) == ("base", "", 5)
    for cluster in ("c1", "c9"):
        with pytest.raises(MailtideError, match=r"nothing before it|no release"):
            rollback(ready, cluster)


def test_newer_examples_lean_the_release_that_serves(settings: Settings, tmp_path: Path) -> None:
    ready = tuned(settings, min_examples=1000, odds_examples=20)
    base = load(tiny(), house=None)
    url, digest = artifacts.put(ready, lora(tmp_path / "one.safetensors", base.sha256).read_bytes())
    one = successor(None, "c1", url, digest, base.sha256, 4, iso(time.time()))
    releases.publish(ready, one)
    subjects = [clause.id for clause in Book.load().clauses("welcome", "subject", "warm")[:2]]
    said = tuple(Choice("subject", name, 0.5) for name in subjects)
    writing = Releases(ready, base.shape, base.sha256, 4)

    def served() -> Mapping[str, float]:
        for record in releases.history(ready)["c1"][-1:]:
            writing.apply(encode(record))
        name, adapter = writing.choose("c1", "i")
        assert name == one.release_id and adapter is not None
        return adapter.odds

    with trainer(ready) as watching:
        teach(ready, "c1", 19, choices=said)
        watching.look()
        assert served() == {} and watching.watch.serving["c1"] == one
        teach(ready, "c1", 1, start=19, choices=said)
        # Every mail with the first subject was clicked.
        put(ready, FEEDBACK, *(Feedback(f"c1-{n}", f"c1 {n}", "clicked", iso(1e9 + n + 60)) for n in range(0, 20, 2)))
        watching.look()
        first = served()
        assert first[subjects[0]] > 1.0 > first.get(subjects[1], 0.0)
        newer = watching.watch.serving["c1"]
        assert newer == msgspec.structs.replace(one, epoch=2, at=newer.at, odds=first)
        watching.look()
        assert watching.watch.serving["c1"] == newer
        assert [one["odds"] for one in listing(ready)] == [len(first)]  # what is printed has no line for each clause
        # Taken back by another process, between two looks of this one: newer odds must not bring it on again.
        back = reverted(newer, iso(time.time()), "asked for on the command line")
        releases.publish(ready, back)
        teach(ready, "c1", 20, start=20, choices=said)
        found = {"c1": mails_of(watching, ready)}
        watching.lean(found)
        assert releases.serving(ready)["c1"] == watching.watch.serving["c1"] == back


def mails_of(watching: Trainer, settings: Settings) -> list[ExampleRow]:
    """What is on the topic now, without a look at what serves."""
    folder = watching.folder / "examples"
    follow(settings, folder)
    return rows(settings, folder)["c1"]


def test_a_search_prints_settings_that_settings_take(settings: Settings, tmp_path: Path) -> None:
    ready = tuned(settings)
    teach(ready, "c1", 24)
    steps: list[str] = []
    found = best_settings(ready, None, 2, 2, lambda name, *_: steps.append(name))
    file = tmp_path / "mailtide.toml"
    file.write_text(found)
    made = problems_and_settings(file, {})
    assert isinstance(made, Settings) and made.training.rank in (2, 4), found
    assert set(steps) == {"trial 1 of 2", "trial 2 of 2"} and releases.history(ready) == {}
    with pytest.raises(MailtideError, match="too few examples"):
        best_settings(ready, "c7", 1, 1, lambda *_: None)


def test_split_clusters_inherit_and_drift_makes_a_refit_due(settings: Settings) -> None:
    ready = tuned(settings)
    one = successor(None, "c1", "/a/1", "1" * 64, "b" * 64, 4, iso(time.time()))
    releases.publish(ready, one)
    clusters = (Cluster("c1", 5, "", (0.0,), {}), Cluster("c2", 5, "", (9.0,), {}, parent="c1"))
    put(ready, CLUSTERS, Snapshot("s1", 1, "", ("x",), (0.0,), (1.0,), clusters, 9))
    now = iso(time.time())
    put(ready, VECTORS, *(Vector(f"c{n}", (0.1 * (n % 3),), now) for n in range(300)))
    teach(ready, "c1", 12)
    with trainer(ready) as watching:
        found = watching.look()
        made = watching.watch.serving["c2"]
        assert (made.artifact, made.inherited_from, made.epoch) == (one.artifact, "c1", 1)
        assert watching.due(found, scheduled=False) == {}
        put(ready, VECTORS, *(Vector(f"c{n}", (2.0 + 0.1 * (n % 3),), now) for n in range(300)))
        found = watching.look()
        assert watching.due(found, scheduled=False)["c1"].startswith("drift: distance to the centre went from")
        assert [row.intent_id for row in watching._elders("c2")] == [row.intent_id for row in found["c1"]]
    assert [type(release) for release in releases.history(ready)["c2"]] == [Release]
