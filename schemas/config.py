"""The settings, as types with their defaults. ``mailtide.settings`` reads them; nobody else does.

Each key can stand in ``mailtide.toml`` (``[section]`` ``key``) and in the
environment (``MAILTIDE_SECTION_KEY``), which wins. Durations are strings such
as ``"90 seconds"``, ``"2 days"`` in the file and seconds (float) in code.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: unknown keys are mistakes."""


class KafkaSettings(Section, frozen=True):
    """``bootstrap`` empty means the embedded broker. ``prefix`` stands before every topic, group and transactional id."""

    bootstrap: str = ""
    port: Port = 0  # of the embedded broker
    heap_mb: Count = 384
    partitions: Count = 6
    replication: Count = 1
    prefix: str = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    username: str = ""
    password: str = ""
    ssl_cafile: str = ""
    session_timeout: float = 20.0  # seconds

    def topic(self, name: str) -> str:
        """The name as the cluster knows it."""
        return self.prefix + name


class SmtpSettings(Section, frozen=True):
    """``url`` empty means the local server that keeps what it gets: ``smtp://user:pw@host:port``, ``smtps://…``, ``?starttls=true``."""

    url: str = ""
    port: Port = 0  # of the local server
    connections: Count = 4
    timeout: float = 30.0  # seconds for one SMTP dialogue
    dkim_selector: str = ""
    dkim_domain: str = ""
    dkim_key_file: str = ""


class ShopSettings(Section, frozen=True):
    """What stands around every email."""

    name: str = "Tidewater Market"
    postal_address: str = "Tidewater Market, 1 Harbour Street, Portland, ME 04101, USA"
    from_email: str = "hello@tidewater.example.com"
    from_name: str = "Tidewater Market"
    link: str = "https://tidewater.example.com"
    unsubscribe: str = "https://tidewater.example.com/unsubscribe"
    unsubscribe_mailto: str = "unsubscribe@tidewater.example.com"
    currency: str = "USD"
    locale: str = "en"
    timezone: str = "America/New_York"  # where a customer's is not known
    agent_name: str = "Robin"  # who signs care mails


class SendingSettings(Section, frozen=True):
    """The gate's measures."""

    cap: Count = 3  # mails a customer in each window
    cap_window: float = 7 * 86400.0
    quiet_start: str = "21:00"  # local time of the customer
    quiet_end: str = "08:00"
    holdout: Share = 0.05
    care_ignores_cap: bool = True


class WriterSettings(Section, frozen=True):
    mode: Literal["guided", "free"] = "guided"
    base_model: str = ""  # a folder or .gguf file; empty = SmolLM2-135M-Instruct from PyPI
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rows: Count = 16
    threads: int = 0  # 0 = the machine's cores
    temperature: float = 0.8
    explore: Share = 0.1  # of clauses drawn uniformly, so that the refit has something to learn from
    pool_size: Count = 8  # drafts kept for each (prompt, release)
    pool_oversample: Count = 2  # drafts written for each one kept
    fresh_share: Share = 0.1  # of intents written anew although the pool could serve
    queue_seconds: float = 120.0  # a queue longer than this falls back to pool and templates


class TrainingSettings(Section, frozen=True):
    interval: float = 3600.0  # seconds between scheduled refits
    min_examples: Count = 64  # new ones that make a refit worth while
    artifacts: str = ""  # fsspec URL; empty = <home>/artifacts
    rank: Count = 8
    learning_rate: float = 1e-3
    steps: Count = 20
    batch: Count = 8
    replay: Share = 0.2
    kl: float = 0.1
    epsilon: float = 0.0  # of the adversarial perturbation, in units of the embeddings' mean norm; 0 = none
    noise: float = 5.0  # NEFTune's alpha; 0 = none
    canary: Share = 0.25  # of a cluster's mails that a new release writes at first; 1 = all
    canary_mails: Count = 50  # of a new release without harm, after which it serves all
    canary_time: float = 86400.0  # seconds after which it does so with fewer
    attribution: float = 7 * 86400.0


class MonitorSettings(Section, frozen=True):
    port: Port = 9464
    interval: float = 5.0
    groups: str = ""  # regular expression; empty = Mailtide's own
    patience: float = 60.0  # without progress before members are called stalled, or growing lag a trend


class StoreSettings(Section, frozen=True):
    """``profiles``: an SQLAlchemy URL (empty: SQLite under the home); ``key``: base64 of 32 bytes (empty: kept in ``<home>/keys``)."""

    profiles: str = ""
    key: str = ""


class Trigger(Section, frozen=True):
    """One trigger as ``mailtide.toml`` spells it under ``[[trigger]]``; see docs/triggers.md."""

    name: str
    on: str | tuple[str, ...]  # an event's name or several, or "rhythm" (a look at the customer every few days)
    kind: Literal["event", "replenishment", "win_back", "recommendation", "coupon", "birthday"] = "event"
    where: str = ""  # on the event: 'total >= 20 and coupon != ""'
    wait: float = 0.0
    restart: bool = False  # a further such event begins the wait anew, with its own facts
    cancel_on: tuple[str, ...] = ()  # events that end the wait, and the mail until it is sent
    condition: str = ""  # on the features; checked when the wait ends and again at the gate
    use_by: float = 86400.0
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    re_entry: float = 30 * 86400.0  # the same customer not again before
    threshold: float = 0.0  # win_back: P(no return in 30 days); replenishment: hazard in 7 days
    marketing: bool = True  # False: service mail
    tone: str = ""  # fixed tone; empty = chosen
    code: str = ""  # coupon code that a coupon mail offers
    offer: str = ""  # its wording as a fact: "10% off"
    enabled: bool = True

    @property
    def starts(self) -> tuple[str, ...]:
        """``on`` as names."""
        return (self.on,) if isinstance(self.on, str) else self.on


class Settings(Section, frozen=True):
    """Everything. ``home`` is where state lives."""

    home: str = ".mailtide"
    clock: Literal["event", "wall"] = "wall"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    patience: float = 120.0  # without progress, with work left, before a worker starts itself again
    health_port: Port = 0  # of each worker and trainer; one that is taken gives way to a free one
    listen_host: str = "127.0.0.1"  # where health and metrics are served; "0.0.0.0" inside a container
    kafka: KafkaSettings = KafkaSettings()
    smtp: SmtpSettings = SmtpSettings()
    shop: ShopSettings = ShopSettings()
    sending: SendingSettings = SendingSettings()
    writer: WriterSettings = WriterSettings()
    training: TrainingSettings = TrainingSettings()
    monitor: MonitorSettings = MonitorSettings()
    store: StoreSettings = StoreSettings()
    trigger: tuple[Trigger, ...] = ()


def kafka_python_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection keywords for kafka-python's clients; ``bootstrap`` must be set by now."""
    options: dict[str, Any] = {"bootstrap_servers": kafka.bootstrap.split(","), "security_protocol": kafka.security_protocol}
    if kafka.security_protocol.startswith("SASL"):
        options |= {"sasl_mechanism": kafka.sasl_mechanism, "sasl_plain_username": kafka.username, "sasl_plain_password": kafka.password}
    if kafka.ssl_cafile:
        options["ssl_cafile"] = kafka.ssl_cafile
    return options
