"""Which release follows which, and when one goes back: tables, no Kafka."""

from __future__ import annotations

import random

import msgspec
import pytest
from scipy.stats import fisher_exact

from schemas.release import Cluster, Release, Snapshot
from training.rollout.lineage import KEPT, inherited, leaning, promoted, reverted, successor
from training.rollout.verdict import LEAST, Tally, decide, look, worse

AT, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
OLD = Tally(written=2000, refused=4, sent=1900, complained=2, unsubscribed=10)


def line(count: int, share: float = 1.0) -> list[Release]:
    made: list[Release] = []
    for n in range(1, count + 1):
        made.append(successor(made[-1] if made else None, "c1", f"/a/{n}", f"{n:064x}", "b" * 64, 8, AT, share))
    return made


def test_going_back_needs_no_record_but_the_last() -> None:
    last = line(8)[-1]
    assert len(last.before) == KEPT
    seen = [last]
    while seen[-1].artifact:
        seen.append(reverted(msgspec.json.decode(msgspec.json.encode(seen[-1]), type=Release), AT, "asked for"))
    assert [one.artifact for one in seen] == ["/a/8", "/a/7", "/a/6", "/a/5", "/a/4", "/a/3", ""]
    assert [one.epoch for one in seen] == list(range(8, 15))
    assert seen[1].release_id == line(7)[-1].release_id and seen[1].rolled_back_from == last.release_id
    assert seen[-1].release_id == "base"


def test_a_canary_goes_back_to_what_served_beside_it_and_is_no_place_to_go_back_to() -> None:
    whole = line(1)[0]
    canary = successor(whole, "c1", "/a/2", "2" * 64, "b" * 64, 8, AT, 0.2)
    assert reverted(canary, AT, "").release_id == whole.release_id
    after = successor(canary, "c1", "/a/3", "3" * 64, "b" * 64, 8, AT)
    assert [one.release_id for one in after.before] == [whole.release_id]
    on = promoted(canary, AT)
    assert (on.share, on.epoch, on.release_id, on.before) == (1.0, canary.epoch + 1, canary.release_id, canary.before)


def test_newer_odds_are_of_the_same_release_and_end_with_it() -> None:
    whole = line(2)[-1]
    newer = leaning(whole, {"x": 1.5}, LATER)
    assert newer == msgspec.structs.replace(whole, epoch=whole.epoch + 1, odds={"x": 1.5}, at=LATER)
    canary = leaning(successor(newer, "c1", "/a/3", "3" * 64, "b" * 64, 8, AT, 0.2), {"x": 2.0}, LATER)
    assert (canary.share, canary.at) == (0.2, AT)  # the time after which it serves all runs on
    assert promoted(canary, LATER).odds == {"x": 2.0}
    assert successor(newer, "c1", "/a/3", "3" * 64, "b" * 64, 8, AT).odds == reverted(newer, AT, "").odds == {}
    clusters = (Cluster("c1", 9, "", (), {}), Cluster("c5", 9, "", (), {}, "c1"))
    split = Snapshot("s", 1, AT, (), (), (), clusters, 9)
    assert [inherited(split, {"c1": one}, AT)[0].odds for one in (newer, canary)] == [{"x": 1.5}, {}]


def test_a_split_cluster_inherits_and_no_other_does() -> None:
    serving = {"c1": line(2)[-1]}
    clusters = [Cluster(name, 9, "", (), {}, parent) for name, parent in (("c1", None), ("c5", "c1"), ("c6", "c2"), ("c7", None))]
    snapshot = Snapshot("s", 1, AT, (), (), (), tuple(clusters), 9)
    (made,) = inherited(snapshot, serving, AT)
    assert (made.cluster, made.inherited_from, made.epoch) == ("c5", "c1", 1)
    assert (made.artifact, made.sha256, made.release_id) == ("/a/2", f"{2:064x}", serving["c1"].release_id)
    assert inherited(snapshot, serving | {"c5": made}, AT) == []
    canary = {"c1": successor(serving["c1"], "c1", "/a/3", "3" * 64, "b" * 64, 8, AT, 0.2)}
    assert [one.artifact for one in inherited(snapshot, canary, AT)] == ["/a/2"]
    assert inherited(snapshot, {"c1": line(1, share=0.2)[0]}, AT)[0].artifact == "/a/1"


@pytest.mark.parametrize(
    ("now", "canary", "action", "why"),
    [
        (Tally(10, 10, 0, 0, 0), True, "wait", ""),  # too few to say anything
        (Tally(40, 0, 38, 0, 0), True, "wait", ""),
        (Tally(60, 0, 58, 0, 1), True, "promote", ""),
        (Tally(60, 0, 58, 0, 1), False, "wait", ""),
        (Tally(40, 6, 34, 0, 0), True, "rollback", "guard refusals: 6 of 40"),
        (Tally(40, 0, 40, 3, 0), True, "rollback", "complaints: 3 of 40"),
        (Tally(40, 0, 40, 0, 7), True, "rollback", "unsubscribes: 7 of 40"),
        (Tally(400, 0, 400, 9, 2), False, "rollback", "complaints: 9 of 400"),
        (Tally(400, 1, 400, 1, 2), False, "wait", ""),
        (Tally(4000, 8, 3900, 4, 20), False, "wait", ""),  # the same shares
    ],
)
def test_verdicts(now: Tally, canary: bool, action: str, why: str) -> None:
    found = decide(now, OLD, look(now.written), canary, enough=50)
    assert found.action == action and found.why.startswith(why)


def test_without_a_past_nothing_is_worse() -> None:
    assert decide(Tally(100, 5, 95, 3, 3), Tally(), look(100), False, 50).action == "wait"
    assert worse(0, 10, 0, 10) == worse(1, 10, 1, 10) == 1.0
    table = [[9, 41], [20, 380]]
    assert worse(9, 50, 20, 400) == pytest.approx(fisher_exact(table, alternative="greater").pvalue) != 1.0


def test_looks_are_few_and_begin_late() -> None:
    numbers = [look(n) for n in range(10_000)]
    assert numbers[LEAST - 1] == 0 and numbers[LEAST] == 1 and numbers == sorted(numbers) and numbers[-1] < 30


def test_an_equal_release_is_almost_never_taken_back_and_a_bad_one_is() -> None:
    """Simulated, every look at 2,000 mails taken: 150 equal releases and 40 whose unsubscribes are five times as many."""

    def taken_back(rate: float, seed: int) -> bool:
        draw = random.Random(seed)
        unsubscribed = seen = 0
        for written in range(1, 2001):
            unsubscribed += draw.random() < rate
            if look(written) > seen:
                seen = look(written)
                if decide(Tally(written, 0, written, 0, unsubscribed), Tally(5000, 0, 5000, 0, 50), seen, False, 50).action == "rollback":
                    return True
        return False

    assert sum(taken_back(0.01, n) for n in range(150)) / 150 <= 0.05
    assert sum(taken_back(0.05, n) for n in range(40)) / 40 >= 0.95
