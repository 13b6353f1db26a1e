"""One JSON line a measurement, beside the result: what an interrupted run goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mctx.errors import UserError

DIGITS = 16


def digest(*arrays: np.ndarray) -> str:
    """Of token ids: what was read can be told apart without being kept."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array, np.int32).tobytes())
        hashed.update(b"|")
    return hashed.hexdigest()[:DIGITS]


def fingerprints(params: Mapping[str, Any]) -> dict[str, str]:
    """Checkpoint item -> sixteen hexadecimal digits that change with any of its weights."""
    found = {}
    for item, tree in sorted(params.items()):
        hashed = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            hashed.update(jax.tree_util.keystr(path).encode())
            hashed.update(np.ascontiguousarray(leaf).tobytes())
        found[item] = hashed.hexdigest()[:DIGITS]
    return found


def name_of(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of anything that JSON can hold."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


class Log:
    """Records of one file that were made under one set of settings; others are left alone.

    A record is known by its facts: what was asked, of what, of which method. It is written, and
    flushed, as it is made; a torn last line, which a kill may leave, is dropped.

    Args:
      settings: everything that a record depends on and its facts do not say.
      more: written into every new record, but no part of what it is known by.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], **more: Any):
        self.path, self._settings, self._more = path, name_of(settings), more
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        raw = path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            with path.open("rb+") as file:
                file.truncate(whole)
        try:
            lines = [json.loads(line) for line in raw[:whole].splitlines()]
            mine = [line for line in lines if line["settings"] == self._settings]
            self._found = {name_of(line["facts"]): line for line in mine}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path} is no file of records: move it away, or take another --out."
            ) from None

    def get(self, facts: Mapping[str, Any]) -> dict | None:
        """The record that is known by these facts."""
        return self._found.get(name_of(facts))

    def add(self, facts: Mapping[str, Any], found: Mapping[str, Any] | None) -> None:
        """Writes a record; `found` None: the method is not defined there."""
        line = {"settings": self._settings, "facts": dict(facts), "found": found, **self._more}
        line = json.loads(json.dumps(line, default=_plain))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._found[name_of(line["facts"])] = line


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as JSON knows them."""
    return value.tolist()
