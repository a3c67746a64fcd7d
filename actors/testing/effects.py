"""What runs do to the world outside, counted: a ledger that survives the process, in memory or in a file."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path

import msgspec

from executus.actors.testing.machine import ProcessDied


class Effect(msgspec.Struct, frozen=True):
    """One call of `Effects.perform`. `took_place` is False where the key was known already."""

    name: str
    key: str | None
    took_place: bool


_decoder = msgspec.json.Decoder(Effect)


class Effects:
    """Stands for the world outside in a run under test: `effects.perform("mail ada")`.

    Give it to the run as a resource, `Factory(Import, effects)`, and to `crash_everywhere(…, effects=effects)`, which
    keeps it over the deaths of the process, empties it before each of them, and compares. Safe on any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._performed: list[Effect] = []
        self._sealed = False

    def perform(self, name: str, *, key: str | None = None) -> bool:
        """Do it: it takes place, and is counted under `name`, unless this `key` was seen before. Whether it did.

        Without a key it takes place at each call, as a mail does. With one, `key=self.context.idempotency_key`, the
        other side is one that knows the keys it has seen, as a payment provider does: once for each key.
        """
        with self._lock:
            if self._sealed:
                raise ProcessDied
            took_place = key is None or all((done.name, done.key) != (name, key) for done in self._read())
            self._write(Effect(name, key, took_place))
            return took_place

    def performed(self) -> list[Effect]:
        """All calls so far, in order."""
        with self._lock:
            return self._read()

    def counts(self) -> Counter[str]:
        """How often each took place, by name."""
        return Counter(effect.name for effect in self.performed() if effect.took_place)

    def empty(self, path: Path | None = None) -> None:
        """Forget everything; from now on in that file, for who dies by SIGKILL, or in memory."""
        with self._lock:
            self._performed.clear()
            self._path = path
            self._sealed = False

    def seal(self, *, sealed: bool = True) -> None:
        """Refuse what a process still tries that died in the machine; or take from the next one again."""
        self._sealed = sealed  # without the lock: one who holds it may be unwinding

    def _read(self) -> list[Effect]:
        if self._path is None:
            return self._performed.copy()
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().splitlines()
        return [_decoder.decode(line) for line in lines]

    def _write(self, effect: Effect) -> None:
        if self._path is None:
            self._performed.append(effect)
            return
        # One write of one line, without a buffer: the system has it when this returns, whatever becomes of the process.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, msgspec.json.encode(effect) + b"\n")
        finally:
            os.close(file)
