"""Write the golden files anew: `python -m tests.golden.regenerate`.

A new type, a new version or a new optional field is written. A field that is gone, renamed or of
another type is refused, because a peer of an older release could not read it: give the type a new
version and keep the old one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.messages.envelope import Envelope
from common.messages.errors import Poison
from tests.golden.examples import examples

FOLDER = Path(__file__).parent / "messages"


def path_of(envelope: Envelope) -> Path:
    return FOLDER / f"{envelope.type}.v{envelope.version}.json"


def wire(envelope: Envelope) -> dict[str, Any]:
    form: dict[str, Any] = json.loads(envelope.encode())
    return form


def fields(form: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the type of every field of a JSON value."""
    yield path, type(form).__name__
    if isinstance(form, dict):
        for name, value in form.items():
            yield from fields(value, f"{path}.{name}".lstrip("."))
    elif isinstance(form, list):
        for value in form:
            yield from fields(value, f"{path}[]")


def broken_promises(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List what a reader or a sender of the old form would miss in the new one."""
    gone = sorted(set(fields(old)) - set(fields(new)))
    promises = [f"{path} ({kind}) is gone" for path, kind in gone]
    try:
        Envelope.model_validate(old).message()
    except Poison as poison:
        promises.append(f"the old form is refused: {poison}")
    return promises


def main() -> int:
    broken = 0
    for envelope in examples():
        path, form = path_of(envelope), wire(envelope)
        if path.exists() and (promises := broken_promises(json.loads(path.read_text()), form)):
            broken += 1
            print(f"{path.name}: {'; '.join(promises)}. Give it a new version.")
        else:
            path.write_text(json.dumps(form, indent=2) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
