"""Structured logs on stderr: one JSON object a line where nobody watches, readable where somebody does. Never personal data."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Set up structlog and the standard library's logging alike."""
    threshold = getattr(logging, level.upper())
    # The streams' libraries tell every step of a rebalance; their warnings are enough for an operator.
    logging.basicConfig(level=max(threshold, logging.WARNING), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)  # says of every busy moment that it was one
    logging.getLogger("jgo").setLevel(logging.ERROR)  # looks a Java up that we don't need, in vain, and says so at length
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
