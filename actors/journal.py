"""`Journal[T]`: an append-only sequence for states. Saving one costs what is new in it, however long it has become."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast, overload

T = TypeVar("T")


class Log(Generic[T]):
    """The list that versions of a journal share: each sees it up to its own length. Only ever appended to.

    `grows` is False for what `Journal(items)` made: such a journal may be a constant of the user's module or the
    default of a field, and would hold on to the items of the first run that appends to it. `content` is a digest of its
    one item for a blob's.
    """

    __slots__ = ("content", "digested", "grows", "items", "lock")

    def __init__(self, items: list[T], *, grows: bool = True, content: bytes | None = None) -> None:
        self.items = items
        self.content = content
        self.grows = grows
        self.lock = threading.Lock()
        self.digested: tuple[Callable[[T], bytes], int, Any] | None = None


class Journal(Sequence[T]):
    """An immutable sequence to append to: `append` and `extend` return a new journal and leave this one as it is.

    The new one shares all items with the old one, so that appending costs the same at any length; appending a second
    time to one version copies its items (as references), and neither sees the other's. In a state, a save writes the
    items that the store does not have yet. T must be immutable. Journals of equal items are equal; there is no hash.

    Safe on any thread, as a value: readers see the shared list up to their own length only, which never changes, and
    who appends takes the log's lock to look at its length and to append in one step.
    """

    __slots__ = ("_length", "_log")

    __hash__: ClassVar[None]  # type: ignore[assignment]  # equality compares all items, and a hash would have to

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._log: Log[T] = Log(list(items), grows=False)
        self._length = len(self._log.items)

    def append(self, item: T) -> Journal[T]:
        """This journal and one item more."""
        log, length = self._log, self._length
        if log.grows:
            with log.lock:
                if len(log.items) == length:
                    log.items.append(item)
                    return journal_of(log, length + 1)
        return journal_of(Log([*log.items[:length], item]), length + 1)

    def extend(self, items: Iterable[T]) -> Journal[T]:
        """This journal and all these items behind it."""
        more = list(items)  # before the lock: the items may be made by something that appends to this journal
        log, length = self._log, self._length
        if not more:
            return self
        if log.grows:
            with log.lock:
                if len(log.items) == length:
                    log.items.extend(more)
                    return journal_of(log, length + len(more))
        return journal_of(Log([*log.items[:length], *more]), length + len(more))

    def replaced(self, items: Iterable[T]) -> Journal[T]:
        """A journal of these items in place of this one's, a summary for instance: the same as `Journal(items)`.

        Saving writes it whole, save for a beginning that it has in common with what was saved; what this one alone held
        is dropped when no snapshot needs it any more.
        """
        return Journal(items)

    def last(self, n: int) -> tuple[T, ...]:
        """The last `n` items, or all where there are fewer. Raises ValueError for a negative `n`."""
        if n < 0:
            raise ValueError(f"last({n}) of a journal: the number of items must not be negative")
        return tuple(self._log.items[max(0, self._length - n) : self._length])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        """One item, or a slice as a tuple. Raises IndexError."""
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            items = self._log.items
            return tuple(items[start:stop]) if step == 1 else tuple(items[at] for at in range(start, stop, step))
        at = index + self._length if index < 0 else index
        if not 0 <= at < self._length:
            raise IndexError(f"journal index {index} out of range: it has {self._length} items")
        return self._log.items[at]

    def __iter__(self) -> Iterator[T]:
        return itertools.islice(self._log.items, self._length)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Journal):
            return NotImplemented
        others = cast("Journal[object]", other)
        if self._length != others._length:
            return False
        return self._log is others._log or all(a is b or a == b for a, b in zip(self, others, strict=True))

    def __repr__(self) -> str:
        return f"Journal({list(self)!r})" if self._length <= 10 else f"<Journal of {self._length} items>"  # noqa: PLR2004

    def __copy__(self) -> Journal[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Journal[T]:
        return self

    def __reduce__(self) -> tuple[type[Journal[T]], tuple[list[T]]]:
        return (Journal, (list(self),))


# --- for what stores journals ---


def journal_of(log: Log[T], length: int) -> Journal[T]:
    """The version of a log that has this length."""
    journal = cast("Journal[T]", object.__new__(Journal))
    journal._log, journal._length = log, length  # noqa: SLF001 - its other constructor
    return journal


def log_of(journal: Journal[T]) -> Log[T]:
    """The log that a journal shares with its other versions."""
    return journal._log  # noqa: SLF001 - for its own package


def digest_of(journal: Journal[T], encode: Callable[[T], bytes]) -> bytes:
    """A digest of the items' bytes as `encode` gives them. A longer version of the same log costs what is new."""
    log, length = log_of(journal), len(journal)
    with log.lock:
        done, digest = 0, hashlib.blake2b(digest_size=32)
        if log.digested is not None and log.digested[0] == encode and log.digested[1] <= length:
            _, done, digest = log.digested
        for item in log.items[done:length]:
            data = encode(item)
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        log.digested = (encode, length, digest)
        return length.to_bytes(8, "big") + digest.digest()
