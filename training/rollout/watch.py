"""What became of the releases: serving records, clusters, drift, and each release's mails, followed from Kafka."""

from __future__ import annotations

from collections import OrderedDict

from schemas.config import Settings
from schemas.learning import Vector
from schemas.mail import Delivery, Feedback
from schemas.release import Release, Snapshot
from schemas.topics import CLUSTERS, DELIVERIES, FEEDBACK, RELEASES, VECTORS
from training.rollout.drift import Drift, nearest
from training.rollout.verdict import ReleaseVerdict, Tally, decide, look
from transport.tail import Tail

WATCHED = 30 * 86400.0  # seconds of mails and objections that count
REMEMBERED = 500_000  # mails whose objections can still be told apart by release: some 100 MB
NOT_THE_GUARD = {"writer", "phrasebook"}  # verdicts of a template that say nothing about the drafts
_OBJECTIONS = {"complained": "complained", "unsubscribed": "unsubscribed"}


class Watch:
    """State of the world as a trainer needs it; ``catch_up`` before each use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.serving: dict[str, Release] = {}
        self.snapshot: Snapshot | None = None
        self.drift = Drift()
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._mails: OrderedDict[str, tuple[str, str]] = OrderedDict()  # intent -> cluster and release
        self._early: dict[str, set[str]] = {}  # objections read before their mail: other partitions, other pace
        self._counted: set[tuple[str, str]] = set()
        self._looked: dict[tuple[str, str], int] = {}
        self._tail = Tail(settings, {RELEASES: None, CLUSTERS: None, VECTORS: None, DELIVERIES: WATCHED, FEEDBACK: WATCHED})
        self.catch_up()
        self.drift.forget()

    def close(self) -> None:
        self._tail.close()

    def catch_up(self) -> None:
        """Take in all that is there now."""
        for topic, found in self._tail.new():
            if topic == RELEASES:
                self.released(found)
            elif topic == CLUSTERS:
                if self.snapshot is None or found.epoch >= self.snapshot.epoch:
                    self.snapshot = found
            elif topic == VECTORS:
                if isinstance(found, Vector) and self.snapshot is not None and self.snapshot.clusters:
                    self.drift.distance(*nearest(self.snapshot, found.values))
            elif topic == DELIVERIES:
                self.delivered(found)
            else:
                self.followed(found)

    def released(self, release: Release) -> None:
        """The newest epoch of a cluster serves it."""
        known = self.serving.get(release.cluster)
        if known is None or release.epoch > known.epoch:
            self.serving[release.cluster] = release

    def delivered(self, mail: Delivery) -> None:
        """One outcome. A mail that never was written says nothing about a release."""
        which = (mail.cluster, mail.release)
        refused = mail.origin == "template" and any(v != "ok" for rule, v in mail.guard.items() if rule not in NOT_THE_GUARD)
        written = refused or mail.origin == "generated"  # a draft that the pool gives out again passed the guard before
        sent = mail.status == "sent" and mail.origin != "template"
        tally = self._tallies.get(which, Tally())
        self._tallies[which] = tally._replace(written=tally.written + written, refused=tally.refused + refused, sent=tally.sent + sent)
        if sent:
            self._mails[mail.intent_id] = which
            for kind in self._early.pop(mail.intent_id, ()):
                self._object(mail.intent_id, kind)
            while len(self._mails) > REMEMBERED:
                self._mails.popitem(last=False)

    def followed(self, feedback: Feedback) -> None:
        """Objections count once a mail and kind."""
        if feedback.kind in _OBJECTIONS:
            self._object(feedback.intent_id, feedback.kind)

    def _object(self, intent: str, kind: str) -> None:
        which = self._mails.get(intent)
        if which is None:
            self._early.setdefault(intent, set()).add(kind)
        elif (intent, kind) not in self._counted:
            self._counted.add((intent, kind))
            tally = self._tallies[which]
            self._tallies[which] = tally._replace(**{kind: getattr(tally, kind) + 1})

    def tally(self, cluster: str, release: str) -> Tally:
        """Counts of one release in one cluster."""
        return self._tallies.get((cluster, release), Tally())

    def verdict(self, release: Release) -> ReleaseVerdict:
        """What is to become of a serving release; each look is taken once."""
        which = (release.cluster, release.release_id)
        now = self.tally(*which)
        number = look(now.mails)
        if number <= self._looked.get(which, 0) or release.rolled_back_from is not None:
            return ReleaseVerdict("wait")
        self._looked[which] = number
        parent = release.parent or "base"
        return decide(now, self.tally(release.cluster, parent), number, release.share < 1.0, self.settings.training.canary_mails)
