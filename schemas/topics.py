"""The topics, declared once: who may read them, how they are kept, how many partitions.

Every topic uses LogAppendTime: a replay carries old event times, and record
times in the past would let retention delete the segments at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DAY_MS = 86_400_000
LARGEST_DEAD_LETTER = 16 << 20  # bytes: what came in a batch of 2 MiB, however well that was compressed, and headers on top

EVENTS = "customer.events"
DEAD_LETTERS = "customer.events.dlq"
INTENTS = "email.intents"
DRAFTS = "email.drafts"
GATE = "email.gate"
CLAIMS = "email.claims"
DELIVERIES = "email.deliveries"
FEEDBACK = "email.feedback"
VECTORS = "model.vectors"
CLUSTERS = "model.clusters"
RHYTHM = "model.rhythm"
ITEMS = "model.items"
TONES = "model.tones"
RELEASES = "model.releases"
EXAMPLES = "training.examples"
CUSTOMERS = "mailtide-intake-customers-changelog"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as Mailtide declares it.

    ``partitions`` None means ``kafka.partitions`` of the settings: these topics
    are keyed by customer and must have equal counts, so that partition *p* of
    each belongs to the same customers.
    """

    name: str
    note: str
    partitions: int | None = None
    cleanup: str = "delete"
    retention_ms: int = -1
    config: dict[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, str]:
        """The topic-level configuration as Kafka spells it."""
        base = {"cleanup.policy": self.cleanup, "message.timestamp.type": "LogAppendTime", "max.message.bytes": "2097152"}
        if self.cleanup == "delete":
            base["retention.ms"] = str(self.retention_ms)
        return base | self.config


TOPICS: tuple[Topic, ...] = (
    Topic(EVENTS, "what the shop publishes, after the Segment spec", retention_ms=30 * DAY_MS),
    Topic(
        DEAD_LETTERS,
        "what could not be read, whole, with the reason in its headers",
        partitions=1,
        retention_ms=7 * DAY_MS,
        # The time stays the dead record's own.
        config={"message.timestamp.type": "CreateTime", "max.message.bytes": str(LARGEST_DEAD_LETTER)},
    ),
    Topic(INTENTS, "a trigger fired for a customer", retention_ms=30 * DAY_MS),
    Topic(DRAFTS, "words with slots, waiting for the gate", retention_ms=30 * DAY_MS),
    Topic(GATE, "each customer's standing, conditions that went, and how far intake has read", cleanup="compact"),
    Topic(CLAIMS, "acknowledged before DATA: this intent is being sent", retention_ms=30 * DAY_MS),
    Topic(DELIVERIES, "every intent's one final outcome", retention_ms=-1),
    Topic(FEEDBACK, "opens, clicks, orders and objections that follow a mail", retention_ms=90 * DAY_MS),
    Topic(VECTORS, "standardised vectors, matured visits and baskets that the learners follow", partitions=1, retention_ms=7 * DAY_MS),
    Topic(CLUSTERS, "published centres, sizes and descriptions", partitions=1, cleanup="compact"),
    Topic(RHYTHM, "the visit model's published weights", partitions=1, cleanup="compact"),
    Topic(ITEMS, "goods bought together, and each kind's favourite product", partitions=1, cleanup="compact"),
    Topic(TONES, "how likely each tone is for each cluster, as its customers answered", partitions=1, cleanup="compact"),
    Topic(RELEASES, "the release that serves each cluster", partitions=1, cleanup="compact"),
    Topic(CUSTOMERS, "intake's state of each customer, as its partition's next owner will find it", cleanup="compact"),
    Topic(EXAMPLES, "contexts and texts that the trainer learns from", partitions=6, retention_ms=180 * DAY_MS),
)

# Which of our consumer groups read what: each begins at the oldest record that is kept.
READERS: dict[str, tuple[str, ...]] = {
    "mailtide-intake": (EVENTS,),
    "mailtide-clusters": (VECTORS,),
    "mailtide-writer": (INTENTS,),
    "mailtide-sender": (DRAFTS, GATE),
    "mailtide-trainer": (EXAMPLES,),
}
