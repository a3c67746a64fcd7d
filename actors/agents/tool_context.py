"""What a tool may ask of its run while a call of it lasts: the `ToolContext` of one call."""

from __future__ import annotations

import threading
from collections.abc import Awaitable
from typing import Any, Final, Protocol, cast

import msgspec

from executus.actors.agents.agent import Note, RunInfo
from executus.actors.agents.errors import ToolError
from executus.actors.agents.parts import Image
from executus.actors.outcomes import safe_text

MAX_ATTACHED_BYTES: Final = 8 * 1024 * 1024
"""Of the images that one call attaches: a record holds 16 MiB."""
MAX_NOTES_BYTES: Final = 4 * 1024 * 1024
"""Of all notes of a run: they come with its result, which is one record."""


class CallContext(Protocol):
    """The part of a RunContext that reaches tools and phases' functions."""

    @property
    def log(self) -> Any:
        """See RunContext."""

    @property
    def cancelled(self) -> bool:
        """See RunContext."""
        ...

    def heartbeat(self, details: object = None) -> None:
        """See RunContext."""

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """See RunContext."""

    def sleep(self, seconds: float) -> Awaitable[None]:
        """See RunContext."""
        ...


class ToolContext:
    """Given to a tool that has a parameter annotated with it; good on whatever thread or task the call runs.

    What the call has left behind is in `noted` and `attached`; the run takes it with the call's result. Once the call
    is over, whoever still holds on to this, as a thread that was given up on, gets a ToolError for anything he does.
    """

    __slots__ = ("_attached", "_before", "_lock", "_noted", "_over", "_run", "call_id", "idempotency_key", "info")

    def __init__(
        self, run: CallContext, info: RunInfo, *, call_id: str, idempotency_key: str, notes: tuple[Note, ...] = ()
    ) -> None:
        self._run = run
        self._before = notes
        self._noted: tuple[Note, ...] = ()
        self._attached: tuple[Image, ...] = ()
        self._over = False
        self._lock = threading.Lock()
        self.info = info
        """Whose run it is."""
        self.call_id = call_id
        """The call's id in the transcript."""
        self.idempotency_key = idempotency_key
        """Hand it to what can tell repeats apart: the same again when this call is repeated after a crash."""

    @property
    def log(self) -> Any:
        """The run's structlog logger."""
        return self._run.log

    @property
    def cancelled(self) -> bool:
        """Whether the run has been asked to end, or the call is over already: return early."""
        return self._over or self._run.cancelled

    @property
    def notes(self) -> tuple[Note, ...]:
        """What the run's tools have noted so far, this call included."""
        return self._before + self._noted

    @property
    def noted(self) -> tuple[Note, ...]:
        """What this call has noted."""
        return self._noted

    @property
    def attached(self) -> tuple[Image, ...]:
        """The images that this call has attached."""
        return self._attached

    def note(self, name: str, value: object) -> None:
        """Add to the run's accumulator, which comes with its result.

        Raises ToolError for what JSON cannot hold, and for what would be too much for a record.
        """
        try:
            if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a tool may be untyped
                raise TypeError(f"a note's name is a text, not {type(name).__name__}")
            name.encode()
            note = Note(name, msgspec.json.encode(value).decode())
        except Exception as error:
            raise ToolError(f"note {safe_text(name)!r} cannot be kept as JSON: {safe_text(error)}") from error
        with self._lock:
            self._check()
            taken = sum(len(one.json) for one in (*self.notes, note))  # about: of ASCII a character is a byte
            if taken > MAX_NOTES_BYTES:
                raise ToolError(f"note {name!r} is one too many: the run's notes would take {taken} bytes")
            self._noted = (*self._noted, note)

    def attach_images(self, *images: Image) -> None:
        """Put images into the conversation, behind the results, before the model's next step. Raises ToolError."""
        if not all(map(_is_image, images)):
            raise ToolError("attach_images takes images as Image(data, media_type), the data as bytes")
        with self._lock:
            self._check()
            taken = sum(len(image.data) for image in (*self._attached, *images))
            if taken > MAX_ATTACHED_BYTES:
                raise ToolError(f"the images of this call take {taken} bytes, the most is {MAX_ATTACHED_BYTES}")
            self._attached = (*self._attached, *images)

    def heartbeat(self, details: object = None) -> None:
        """Say that the call is alive, to `idle_timeout_s` and the critic."""
        self._check()
        self._run.heartbeat(details)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report progress for `status()` and events; a heartbeat too."""
        self._check()
        self._run.progress(done, total, note)

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Sleep, or return early once the run is asked to end. Await it in `async def`; elsewhere it blocks."""
        self._check()
        return self._run.sleep(seconds)

    def end(self) -> None:
        """The call is over; nothing that still runs of it has effect. Called by the run."""
        with self._lock:
            self._over = True

    def _check(self) -> None:
        if self._over:
            raise ToolError("this call is over: nothing that it still does has effect. Return from the tool.")


def _is_image(image: Any) -> bool:
    """Whether it can be stored: a Struct does not check what it is made of."""
    return (
        isinstance(image, Image)
        and isinstance(cast("Any", image.data), bytes)
        and isinstance(cast("Any", image.media_type), str)
        and image.media_type.isascii()
    )
