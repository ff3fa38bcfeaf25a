"""Structured logs on stderr: one JSON object a line where nobody watches, readable where somebody does. Never personal data.

What the standard library's logging says goes the same way: a record's place
(``extra={"group": …, "topic": …, "partition": …, "offset": …}``) becomes keys.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

PLACE = ("group", "topic", "partition", "offset", "worker", "service")  # of ``extra`` these alone become keys
OURS = ("mailtide", "streams", "models", "training", "monitoring", "schemas")


def configure(level: str, service: bool = True) -> None:
    """Set up structlog and the standard library's logging alike.

    A service passes its libraries' warnings on. Any other command says in one line of its own what went wrong; at level
    "debug" it passes them on, too.
    """
    threshold = getattr(logging, level.upper())
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(default=str)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(allow=PLACE), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # The streams' libraries tell every step of a rebalance; their warnings are enough for an operator.
    least = logging.WARNING if service or threshold == logging.DEBUG else logging.CRITICAL
    logging.basicConfig(level=max(threshold, least), handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(threshold)
    if threshold != logging.DEBUG:
        # It warns of each busy moment, and of each try while Kafka is away: we say it once. A command's user sees no error of it either.
        logging.getLogger("kafka").setLevel(max(least, logging.ERROR))
    logging.getLogger("jgo").setLevel(logging.ERROR)  # looks a Java up that we don't need, in vain, and says so at length


def outages_told() -> None:
    """A worker says once that Kafka is away (``transport.availability``); its libraries, silent but at "debug"."""
    if not logging.getLogger(OURS[0]).isEnabledFor(logging.DEBUG):
        for name in (
            "faust",
            "mode",
            "aiokafka",
            "intervaltree",
            "streams.faust.consumer",
        ):  # the last: Faust logs by its subclasses' module
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def hushed(library: str) -> Iterator[None]:
    """While the block asks whether something answers, the library need not say at length that it doesn't; at level "debug" it may."""
    logger = logging.getLogger(library)
    before = logger.level
    if not logging.getLogger(OURS[0]).isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
