"""Stand in for a service in tests of the runtimes: `python -m tests.support.dummy_service`.

It is always ready, prints its settings at the start, and a last line on SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import FrameType
from typing import NoReturn


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing: tests read the log."""


def leave(*_: int | FrameType | None) -> NoReturn:
    print("left when told", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    given = {key: value for key, value in os.environ.items() if key.startswith("SAGAPROOF_")}
    print(json.dumps(given), flush=True)
    signal.signal(signal.SIGTERM, leave)
    host = given.get("SAGAPROOF_HEALTH_HOST", "127.0.0.1")
    ports = [int(value) for key, value in given.items() if key.endswith("_PORT")]
    first, *others = [HTTPServer((host, port), Ready) for port in ports]  # an API has two
    for other in others:
        threading.Thread(target=other.serve_forever, daemon=True).start()
    first.serve_forever()
