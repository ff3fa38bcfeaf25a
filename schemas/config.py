"""The settings, as types with their defaults. ``mailtide.settings`` reads them; nobody else does.

Each key can stand in ``mailtide.toml`` (``[section]`` ``key``) and in the
environment (``MAILTIDE_SECTION_KEY``), which wins. Durations are strings such
as ``"90 seconds"``, ``"2 days"`` in the file and seconds (float) in code.
What stands behind a key says what it means, in docs/settings.md too.
"""

from __future__ import annotations

import ssl
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.errors import SettingsError

Port = Annotated[int, Meta(ge=0, le=65535, extra={"type": "port"})]
Share = Annotated[float, Meta(ge=0.0, le=1.0, extra={"type": "share"})]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0.0, extra={"type": "duration"})]
Time = Annotated[float, Meta(gt=0.0, extra={"type": "duration"})]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: unknown keys are mistakes."""


class KafkaSettings(Section, frozen=True):
    """``bootstrap`` empty means the embedded broker. ``prefix`` stands before every topic, group and transactional id."""

    bootstrap: str = ""  # host:port, several with commas; empty = Mailtide starts a Kafka of its own
    port: Port = 0  # of the embedded broker; 0 = a free one
    heap_mb: Count = 384  # MiB of the embedded broker's Java heap
    partitions: Count = 6  # of each topic keyed by customer, when it is made
    replication: Count = 1  # of each topic, when it is made
    prefix: str = ""  # stands before every topic, group and transactional id
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"  # as Kafka's own setting
    sasl_mechanism: str = "PLAIN"  # PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
    username: str = ""  # for SASL
    password: str = ""  # for SASL
    ssl_cafile: str = ""  # PEM file of who signed the brokers' certificates; empty = the system's
    session_timeout: Time = 20.0  # without a sign of life before a member loses its partitions

    def topic(self, name: str) -> str:
        """The name as the cluster knows it."""
        return self.prefix + name


class SmtpSettings(Section, frozen=True):
    """``url`` empty means the local server that keeps what it gets: ``smtp://user:pw@host:port``, ``smtps://…``.

    Credentials or a host that isn't this machine imply STARTTLS; ``?starttls=false`` asks for plain.
    """

    url: str = ""  # smtp://user:password@host:587, smtps://…, ?starttls=false for plain; empty = the local server that keeps what it gets
    port: Port = 0  # of the local server; 0 = a free one
    connections: Count = 4  # held open to the mail server
    timeout: Time = 30.0  # for one SMTP dialogue
    dkim_selector: str = ""  # name of the key in DNS; mails are signed where all three stand
    dkim_domain: str = ""  # whose DNS has the key
    dkim_key_file: str = ""  # PEM file of the private key


class ShopSettings(Section, frozen=True):
    """What stands around every email."""

    name: str = "Tidewater Market"  # as mails call the shop
    postal_address: str = "Tidewater Market, 1 Harbour Street, Portland, ME 04101, USA"  # stands in every mail
    from_email: str = "hello@tidewater.example.com"  # the sender's address
    from_name: str = "Tidewater Market"  # the sender's name
    link: str = "https://tidewater.example.com"  # where a mail's button leads
    unsubscribe: str = "https://tidewater.example.com/unsubscribe"  # takes the one-click POST of RFC 8058
    unsubscribe_mailto: str = "unsubscribe@tidewater.example.com"  # for mail programs without one-click
    currency: str = "USD"  # of prices whose event names none
    locale: str = "en"  # where a customer's is not known
    timezone: str = "America/New_York"  # IANA name, where a customer's is not known
    agent_name: str = "Robin"  # who signs care mails


class SendingSettings(Section, frozen=True):
    """The gate's measures."""

    cap: Count = 3  # mails to one customer in each window; more end as frequency_cap
    cap_window: Time = 7 * 86400.0  # the window in which the cap counts
    quiet_start: str = "21:00"  # as "22:00", local time of the customer; mail waits from then on; the same as quiet_end = never
    quiet_end: str = "08:00"  # likewise; what waited goes from then on
    holdout: Share = 0.05  # of customers that get no marketing mail, to compare with; 0 = none
    care_ignores_cap: bool = True  # mail of priority 0 goes past the cap


class WriterSettings(Section, frozen=True):
    """What writes the words, and when it doesn't."""

    mode: Literal["guided", "free"] = "guided"  # guided: along the phrase book; free: for larger base models
    base_model: str = ""  # a folder or .gguf file; empty = SmolLM2-135M-Instruct from PyPI
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where the model runs
    rows: Count = 16  # mails written at once
    threads: Annotated[int, Meta(ge=0)] = 0  # 0 = the machine's cores
    temperature: Annotated[float, Meta(gt=0.0)] = 0.8  # of the draw among clauses; lower = the likeliest more often
    untaught_temperature: Annotated[float, Meta(gt=0.0)] = 2.4  # the same, of the base model until a cluster's first release
    explore: Share = 0.1  # of clauses drawn uniformly, so that the refit has something to learn from
    pool_size: Count = 8  # drafts kept for each (prompt, release)
    pool_oversample: Count = 2  # drafts written for each one kept
    fresh_share: Share = 0.1  # of intents written anew although the pool could serve
    queue_seconds: Seconds = 45.0  # a queue longer than this falls back to pool and templates


class TrainingSettings(Section, frozen=True):
    """The training service's fits, and how a release comes into service."""

    interval: Time = 3600.0  # between scheduled refits
    min_examples: Count = 64  # new ones that make a refit worth while
    odds_examples: Count = 100  # new ones after which a serving release gets newer odds of its clauses, without a refit
    artifacts: str = ""  # fsspec URL; empty = <home>/artifacts
    rank: Count = 8  # of the adapter
    learning_rate: Annotated[float, Meta(gt=0.0)] = 1e-3  # of the fit
    steps: Count = 20  # of one fit
    batch: Count = 8  # examples in each step
    replay: Share = 0.2  # of a batch drawn from older examples
    kl: Annotated[float, Meta(ge=0.0)] = 0.1  # weight of the distance from the base model
    epsilon: Annotated[float, Meta(ge=0.0)] = 0.0  # of the adversarial perturbation, in units of the embeddings' mean norm; 0 = none
    noise: Annotated[float, Meta(ge=0.0)] = 5.0  # NEFTune's alpha; 0 = none
    canary: Share = 0.25  # of a cluster's mails that a new release writes at first; 1 = all
    canary_mails: Count = 50  # of a new release without harm, after which it serves all
    canary_time: Seconds = 86400.0  # after which it does so with fewer
    attribution: Seconds = 7 * 86400.0  # after a mail in which an order counts as its success


class MonitorSettings(Section, frozen=True):
    """Consumer lag and its verdicts."""

    port: Port = 9464  # of /metrics; one that is taken gives way to a free one
    interval: Time = 5.0  # between two looks
    groups: str = ""  # regular expression; empty = Mailtide's own
    patience: Seconds = 60.0  # without progress before members are called stalled, or growing lag a trend


class StoreSettings(Section, frozen=True):
    """``profiles``: an SQLAlchemy URL (empty: SQLite under the home); ``key``: base64 of 32 bytes (empty: kept in ``<home>/keys``)."""

    profiles: str = ""  # an SQLAlchemy URL; empty = SQLite under the home
    key: str = ""  # base64 of 32 bytes, the master key of the profiles; empty = kept in <home>/keys


class Trigger(Section, frozen=True):
    """One trigger as ``mailtide.toml`` spells it under ``[[trigger]]``; see docs/triggers.md."""

    name: Annotated[str, Meta(min_length=1)]  # the phrase book's chapter, each once
    on: str | tuple[str, ...]  # an event's name or several, or "rhythm" (a look at the customer every few days)
    kind: Literal["event", "replenishment", "win_back", "recommendation", "coupon", "birthday"] = "event"  # what a look searches for
    where: str = ""  # on the event: 'total >= 20 and coupon != ""'
    wait: Seconds = 0.0  # after the event, before it fires
    restart: bool = False  # a further such event begins the wait anew, with its own facts
    cancel_on: tuple[str, ...] = ()  # events that end the wait, and the mail until it is sent
    condition: str = ""  # on the features; checked when the wait ends and again at the gate
    use_by: Time = 86400.0  # after it fired; later it ends as expired
    priority: Annotated[int, Meta(ge=0, le=9)] = 5  # 0 (care) to 9 (can wait)
    re_entry: Seconds = 30 * 86400.0  # the same customer not again before
    threshold: Share = 0.0  # win_back: P(no return in 30 days); replenishment: hazard in 7 days
    marketing: bool = True  # false: service mail, which needs no consent
    tone: Literal["", "warm", "crisp", "playful"] = ""  # fixed tone; empty = chosen
    code: str = ""  # coupon code that a coupon mail offers
    offer: str = ""  # its wording as a fact: "10% off"
    enabled: bool = True  # false keeps it in the file without effect

    @property
    def starts(self) -> tuple[str, ...]:
        """``on`` as names."""
        return (self.on,) if isinstance(self.on, str) else self.on


class Settings(Section, frozen=True):
    """Everything. ``home`` is where state lives."""

    home: str = ".mailtide"  # folder of all state; delete it, and Mailtide is new
    clock: Literal["event", "wall"] = "wall"  # which time the timers follow
    log_level: Literal["debug", "info", "warning", "error"] = "info"  # debug: what the client libraries say, too
    patience: Time = 120.0  # without progress, with work left, before a worker starts itself again
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


def tls(kafka: KafkaSettings) -> ssl.SSLContext | None:
    """Whom to trust; None where the connection isn't encrypted. SettingsError where ``ssl_cafile`` can't be read."""
    if not kafka.security_protocol.endswith("SSL"):
        return None
    try:
        return ssl.create_default_context(cafile=kafka.ssl_cafile or None)
    except OSError as error:  # one of OpenSSL's, too
        why = "it holds no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise SettingsError(
            f"kafka.ssl_cafile = {kafka.ssl_cafile!r} can't be used ({why}): name a PEM file of who signed the brokers' certificates"
        ) from error


def kafka_python_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection keywords for kafka-python's clients; ``bootstrap`` must be set by now. Raises SettingsError as ``tls`` does."""
    options: dict[str, Any] = {"bootstrap_servers": kafka.bootstrap.split(","), "security_protocol": kafka.security_protocol}
    if kafka.security_protocol.startswith("SASL"):
        options |= {"sasl_mechanism": kafka.sasl_mechanism, "sasl_plain_username": kafka.username, "sasl_plain_password": kafka.password}
    if (context := tls(kafka)) is not None:
        options["ssl_context"] = context
    return options
