"""A database and a virtual host of its own for every test, cheap through a template database."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from chaos.runtime.bootstrap import bootstrap_statements
from common.db import migrate
from common.process import COMMON_MIGRATIONS
from common.settings import Settings
from tests.servers import Servers, running

ROOT = Path(__file__).parents[2]
SCHEMAS = ("orchestrator", "order_svc", "payment_svc", "inventory_svc")
TEMPLATE = "sagaproof_template"
_numbers = itertools.count(1)
