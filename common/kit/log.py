"""Structured logs: one JSON object a line on stdout. Owns the configuration of structlog."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from typing import Any

import structlog


def configure(process: str, level: str) -> None:
    """Configure structlog: each line has the process's name and a timestamp in UTC."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            lambda _, __, line: {"timestamp": line["timestamp"], **line},  # `sort` sorts by it
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def about(**fields: object) -> AbstractContextManager[None]:
    """Add these fields to every line logged inside."""
    return structlog.contextvars.bound_contextvars(**fields)


def get(name: str) -> Any:
    """Return a logger; structlog binds it lazily, so modules may take one at import."""
    return structlog.get_logger(component=name)
