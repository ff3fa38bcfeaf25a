from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.mail.gate import History, Verdict, decide, gate_time, held_out, over_cap, quiet_until
from schemas.config import SendingSettings, Settings, Trigger
from schemas.mail import Draft, Facts, Intent, Source, Standing, iso

NEW_YORK = "America/New_York"
NOON = datetime(2026, 6, 1, 12, tzinfo=ZoneInfo(NEW_YORK)).timestamp()
HOUR, DAY = 3600.0, 86400.0
GOOD = Standing("c", consent=True, address=True)


def settings(clock: Any = "wall", **sending: Any) -> Settings:
    triggers = (Trigger("welcome", on="Signed Up"), Trigger("care", on="Support Ticket Opened", marketing=False))
    return Settings(clock=clock, sending=SendingSettings(**{"holdout": 0.0} | sending), trigger=triggers)


def draft(due: float = NOON, use_by: float = DAY, trigger: str = "welcome", fired: float | None = None, priority: int = 5) -> Draft:
    intent = Intent(
        "i",
        "c",
        trigger,
        "1",
        iso(due),
        iso(due + use_by),
        "c0",
        Facts(),
        Source("e", 0, 0),
        iso(due if fired is None else fired),
        priority,
    )
    return Draft(intent, "", "template", "guided", "base", 1)


def ask(
    standing: Standing | None = GOOD,
    history: History = History(),  # noqa: B008
    now: float = NOON,
    gone: bool = False,
    using: Settings | None = None,
    **of: Any,
) -> Verdict:
    return decide(draft(**of), standing, history, now, using or settings(), gone)


def but(**changes: Any) -> Standing:
    return msgspec.structs.replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (GOOD, None),
        (None, "no_consent"),
        (but(consent=False), "no_consent"),
        (but(unsubscribed=True, consent=False), "unsubscribed"),
        (but(complained=True), "complained"),
        (but(bounced=True), "bounced"),
        (but(address=False), "no_address"),
    ],
)
def test_marketing_needs_standing(standing: Standing | None, reason: str | None) -> None:
    assert ask(standing).reason == reason


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (but(consent=False), None),
        (but(unsubscribed=True), None),
        (but(bounced=True), "bounced"),
        (but(complained=True), "complained"),
        (but(address=False), "no_address"),
        (None, "no_address"),
    ],
)
def test_service_mail_needs_an_address_only(standing: Standing | None, reason: str | None) -> None:
    assert ask(standing, trigger="care", using=settings(holdout=1.0)).reason == reason


def test_an_unknown_trigger_is_marketing() -> None:
    assert ask(but(consent=False), trigger="nobody_knows").reason == "no_consent"


def test_the_rules_are_asked_in_their_order() -> None:
    """Everything forbids at once; mend the first reason and the next one shows."""
    worst = but(unsubscribed=True, complained=True, bounced=True, consent=False, address=False)
    given: dict[str, Any] = {"standing": worst, "history": History(True, (NOON,) * 3), "gone": True, "now": NOON + 2 * DAY}
    strict = settings(holdout=1.0)
    mends: list[tuple[str, dict[str, Any]]] = [
        ("duplicate", {"history": History(False, (NOON,) * 3)}),
        ("unsubscribed", {"standing": msgspec.structs.replace(worst, unsubscribed=False)}),
        ("complained", {"standing": msgspec.structs.replace(worst, unsubscribed=False, complained=False)}),
        ("bounced", {"standing": but(consent=False, address=False)}),
        ("no_consent", {"standing": but(address=False)}),
        ("no_address", {"standing": GOOD}),
        ("condition_gone", {"gone": False}),
        ("expired", {"now": NOON}),
    ]
    for reason, mend in mends:
        assert ask(using=strict, **given).reason == reason
        given |= mend
    assert ask(using=strict, **given).reason == "holdout"
    assert ask(**given).reason == "frequency_cap"
    assert ask(**given | {"history": History()}).action == "send"


def test_expiry_is_exclusive() -> None:
    assert ask(now=NOON + DAY - 0.001, using=settings(quiet_start="00:00", quiet_end="00:00")).action == "send"
    assert ask(now=NOON + DAY).reason == "expired"


@pytest.mark.parametrize(("cap", "sends", "over"), [(0, 0, True), (1, 0, False), (1, 1, True), (3, 2, False), (3, 3, True), (3, 4, True)])
def test_cap_counts(cap: int, sends: int, over: bool) -> None:
    assert over_cap([float(i) for i in range(sends)], 100.0, cap, 1000.0) is over


def test_a_mail_one_window_ago_counts_no_longer() -> None:
    assert over_cap([0.0], 999.999, 1, 1000.0)
    assert not over_cap([0.0], 1000.0, 1, 1000.0)
    assert not over_cap([1000.0], 0.0, 1, 1000.0)  # one that overtook, as far ahead


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 4), st.integers(1, 100))
def test_no_window_ever_holds_more_than_the_cap(times: list[int], cap: int, window: int) -> None:
    """In whatever order mails ask."""
    sent: list[float] = []
    for at in times:
        if not over_cap(sent, at, cap, window):
            sent = sorted([*sent, float(at)])
    assert all(sent[i + cap] - sent[i] >= window for i in range(len(sent) - cap))


def test_the_care_lane_ignores_the_cap() -> None:
    full = History(False, (NOON - 1,) * 5)
    assert ask(history=full, trigger="care", priority=0).action == "send"
    assert ask(history=full, trigger="care", priority=1).reason == "frequency_cap"
    assert ask(history=full, trigger="care", priority=0, using=settings(care_ignores_cap=False)).reason == "frequency_cap"


def test_holdout_is_a_stable_share() -> None:
    held = {f"c{i}" for i in range(20_000) if held_out(f"c{i}", 0.05)}
    assert 800 < len(held) < 1200
    assert held <= {f"c{i}" for i in range(20_000) if held_out(f"c{i}", 0.1)}
    assert not held_out("c", 0.0)
    assert held_out("c", 1.0)


def local(text: str, zone: str = NEW_YORK, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


@pytest.mark.parametrize(
    ("moment", "opens"),
    [
        ("2026-06-01 20:59:59", None),
        ("2026-06-01 21:00", "2026-06-02 08:00"),
        ("2026-06-02 00:00", "2026-06-02 08:00"),
        ("2026-06-02 07:59:59", "2026-06-02 08:00"),
        ("2026-06-02 08:00", None),
        ("2026-03-07 22:00", "2026-03-08 08:00"),  # the night that loses an hour
        ("2026-10-31 22:00", "2026-11-01 08:00"),  # the night that gains one
    ],
)
def test_quiet_hours(moment: str, opens: str | None) -> None:
    assert quiet_until(local(moment), NEW_YORK, "UTC", "21:00", "08:00") == (None if opens is None else local(opens))


def test_the_nights_of_the_clock_changes_have_their_true_length() -> None:
    evening = local("2026-03-07 22:00")
    assert quiet_until(evening, NEW_YORK, "UTC", "21:00", "08:00") == evening + 9 * HOUR
    evening = local("2026-10-31 22:00")
    assert quiet_until(evening, NEW_YORK, "UTC", "21:00", "08:00") == evening + 11 * HOUR


def test_an_end_that_the_spring_leaves_out() -> None:
    """02:30 doesn't exist on that night: the mail goes at 03:30, the same instant by the old clock."""
    found = quiet_until(local("2026-03-08 01:00"), NEW_YORK, "UTC", "21:00", "02:30")
    assert found == local("2026-03-08 03:30")


def test_an_end_that_the_autumn_has_twice() -> None:
    first = local("2026-11-01 01:30")
    assert quiet_until(local("2026-11-01 00:30"), NEW_YORK, "UTC", "21:00", "01:30") == first
    again = local("2026-11-01 01:10", fold=1)  # the local clock has gone back into the quiet hours
    assert quiet_until(again, NEW_YORK, "UTC", "21:00", "01:30") == first + HOUR


@given(st.floats(1.7e9, 2.0e9), st.sampled_from([NEW_YORK, "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia"]))
def test_what_waits_opens_outside_the_quiet_hours(moment: float, zone: str) -> None:
    opens = quiet_until(moment, zone, "UTC", "21:00", "08:00")
    if opens is not None:
        assert 0 < opens - moment <= 12 * HOUR
        assert quiet_until(opens, zone, "UTC", "21:00", "08:00") is None


def test_zones() -> None:
    night = local("2026-06-01 23:00", "Asia/Tokyo")  # 10:00 in New York
    assert ask(but(timezone="Asia/Tokyo"), now=night, due=night).action == "wait"
    assert ask(GOOD, now=night, due=night).action == "send"  # the shop's zone
    assert ask(but(timezone="../../etc/passwd"), now=night, due=night).action == "send"
    assert quiet_until(night, "nowhere", "nowhere either", "21:00", "08:00") is None  # UTC: 14:00


def test_no_quiet_hours_where_start_is_end() -> None:
    assert all(quiet_until(NOON + hour * HOUR, NEW_YORK, "UTC", "00:00", "00:00") is None for hour in range(24))


def test_daytime_quiet_hours() -> None:
    assert quiet_until(NOON, NEW_YORK, "UTC", "11:00", "13:00") == NOON + HOUR
    assert quiet_until(NOON + HOUR, NEW_YORK, "UTC", "11:00", "13:00") is None


def test_a_mail_waits_for_the_morning_unless_it_is_stale_by_then() -> None:
    night = local("2026-06-01 22:00")
    waits = ask(now=night, due=night)
    assert (waits.action, waits.until) == ("wait", local("2026-06-02 08:00"))
    assert ask(now=night, due=night, use_by=10 * HOUR).reason == "expired"
    assert ask(now=night, due=night, use_by=10 * HOUR + 1).action == "wait"


def test_the_event_clock() -> None:
    """A replay of last year, fired now: lateness is real time, quiet hours and cap are of the day that the events had."""
    wall = NOON + 1000 * DAY
    night = local("2026-06-01 22:00")
    replayed = draft(due=night, use_by=DAY, fired=wall)
    assert gate_time(replayed.intent, wall + 60, "event") == night + 60
    assert gate_time(replayed.intent, wall + 60, "wall") == wall + 60
    verdict = decide(replayed, GOOD, History(), night + 60, settings("event"), False)
    assert (verdict.action, verdict.counted) == ("send", local("2026-06-02 08:00"))
    assert decide(replayed, GOOD, History(), night + DAY, settings("event"), False).reason == "expired"
    week_before = History(False, [night - 8 * DAY] * 3)
    assert decide(replayed, GOOD, week_before, night, settings("event"), False).action == "send"
    assert decide(replayed, GOOD, History(False, [night - DAY] * 3), night, settings("event"), False).reason == "frequency_cap"


def test_a_clock_that_goes_backwards_makes_nothing_early() -> None:
    assert gate_time(draft(due=NOON, fired=NOON + 50).intent, NOON, "event") == NOON


@given(st.lists(st.booleans(), min_size=7, max_size=7), st.integers(0, 9))
def test_every_draft_gets_one_clear_answer(flags: list[bool], priority: int) -> None:
    consent, address, unsubscribed, bounced, complained, gone, ended = flags
    standing = Standing("c", consent, address, unsubscribed, bounced, complained)
    verdict = decide(draft(priority=priority), standing, History(ended), NOON, settings(), gone)
    assert (verdict.action == "suppress") == (verdict.reason is not None)
    if verdict.action == "send":
        assert consent and address and not (unsubscribed or bounced or complained or gone or ended)


def test_hours_of_a_year_never_fail() -> None:
    hours = [quiet_until(local("2026-01-01 00:00") + hour * HOUR, NEW_YORK, "UTC", "21:00", "08:00") for hour in range(365 * 24)]
    opens = sorted({opens for opens in hours if opens is not None})
    assert len(opens) == 366  # the first ends the night before
    assert {round((later - sooner) / HOUR) for sooner, later in pairwise(opens)} == {23, 24, 25}
