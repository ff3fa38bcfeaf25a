"""What waits, in the words of mail."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.mail import LONG_WINDOW, MailFollower, OpenMail, Rate, Waiting, waiting
from schemas.config import Settings
from schemas.mail import Delivery, Draft, Facts, Intent, Source, encode, iso
from schemas.topics import DELIVERIES, DRAFTS, INTENTS

NOW = 1_800_000_000.0


def intent(name: str, trigger: str = "welcome", due: float = NOW, use_by: float = 3600.0, fired: float = NOW) -> Intent:
    return Intent(name, "c", trigger, "o", iso(due), iso(due + use_by), "", Facts(), Source("t", 0, 0), iso(fired))


def draft(of: Intent) -> Draft:
    return Draft(of, "text", "template", "guided", "base", 1)


def outcome(of: Intent) -> Delivery:
    return Delivery(of.intent_id, "c", of.trigger, "", "base", "template", "guided", "sent", "m", of.due, of.due, of.due)


def follow(*records: tuple[str, Any], settings: Settings | None = None) -> MailFollower:
    follower = MailFollower(settings or Settings())
    for topic, value in records:
        follower.note(topic, encode(value), NOW)
    return follower


def test_care_goes_first_and_what_stands_behind_is_late() -> None:
    line = [
        OpenMail("welcome", 5, NOW - 50, NOW + 30),
        OpenMail("welcome", 5, NOW - 40, NOW + 29),
        OpenMail("care", 0, NOW - 5, NOW + 11, drafted=True),
    ]
    # One outcome in 10 s: care after 10 s, the others after 20 and 30.
    assert waiting(line, 0.1, NOW) == [Waiting("writer", "welcome", 2, 50.0, 1), Waiting("sender", "care", 1, 5.0, 0)]


def test_without_any_rate_all_will_be_late_and_what_is_not_due_yet_has_its_time() -> None:
    assert waiting([OpenMail("welcome", 5, NOW, NOW + 1e6)], 0.0, NOW)[0].will_expire == 1
    assert waiting([OpenMail("welcome", 5, NOW + 500, NOW + 600)], 1.0, NOW)[0].will_expire == 0
    assert waiting([], 0.0, NOW) == []


def test_an_intent_moves_from_stage_to_stage_and_ends() -> None:
    one = intent("i1")
    follower = follow((INTENTS, one))
    assert [(w.stage, w.intents) for w in waiting(follower.open.values(), 1.0, NOW)] == [("writer", 1)]
    follower.note(DRAFTS, encode(draft(one)), NOW)
    assert [(w.stage, w.intents) for w in waiting(follower.open.values(), 1.0, NOW)] == [("sender", 1)]
    follower.note(DELIVERIES, encode(outcome(one)), NOW)
    assert not follower.open


@given(st.permutations([INTENTS, INTENTS, DRAFTS, DELIVERIES]), st.permutations([INTENTS, INTENTS, DRAFTS]))
def test_the_order_in_which_topics_are_read_makes_no_difference(ended: list[str], open_: list[str]) -> None:
    one, two = intent("i1"), intent("i2")
    of = {INTENTS: lambda one: one, DRAFTS: draft, DELIVERIES: outcome}
    follower = follow(*((topic, of[topic](one)) for topic in ended), *((topic, of[topic](two)) for topic in open_))
    assert list(follower.open) == ["i2"]
    assert follower.open["i2"].drafted


def test_clocks() -> None:
    late = intent("i1", due=NOW - 1e7, fired=NOW)  # a replayed year: due long ago, fired just now
    assert follow((INTENTS, late), settings=Settings(clock="event")).open["i1"].until == NOW + 3600
    assert follow((INTENTS, late)).open["i1"].until == NOW - 1e7 + 3600
    assert follow((INTENTS, intent("i2", due=NOW + 60))).open["i2"].ready == NOW + 60


def test_what_cannot_be_read_is_left_out() -> None:
    follower = MailFollower(Settings())
    for value in (b"", b"{}", b"not json", encode(msgspec.structs.replace(intent("i"), due="soon"))):
        for topic in (INTENTS, DRAFTS, DELIVERIES):
            follower.note(topic, value, NOW)
    assert not follower.open


def test_a_minute_without_mail_is_no_standstill() -> None:
    rate = Rate()
    for n in range(600):
        rate.add(NOW - 1 + n / 1000)
    assert rate.present(NOW) == pytest.approx(10.0)
    assert rate.present(NOW + 120) == pytest.approx(600 / LONG_WINDOW)
    assert rate.present(NOW + LONG_WINDOW + 10) == 0.0
