"""Stored values as people and scripts read them: opaque bytes decoded as far as that is safe, ages, JSON in ASCII."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

MAX_DECODED_BYTES: Final = 1024 * 1024
"""More is not decoded without its type: a megabyte of empty maps becomes 70 MB of objects, 16 a gigabyte."""
MAX_LINES: Final = 200
MAX_LINE_CHARS: Final = 300
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400


class Decoded(msgspec.Struct, frozen=True):
    """Stored bytes and what they say. `value` is None, and `why_not` says why, where they are not decoded."""

    size_bytes: int
    value: Any = None
    why_not: str | None = None


def decoded(data: bytes) -> Decoded:
    """Decode plain msgpack, without knowing the type, into what JSON can hold."""
    if len(data) > MAX_DECODED_BYTES:
        return Decoded(len(data), why_not=f"larger than {MAX_DECODED_BYTES} bytes; --raw prints them")
    try:
        return Decoded(len(data), value=json_value(msgspec.msgpack.decode(data)))
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        return Decoded(len(data), why_not=f"not plain msgpack ({error}); --raw prints them")


def json_value(value: object) -> Any:
    """What JSON can hold of a value; bytes as base64, keys as text. Raises what msgspec raises, RecursionError."""
    match value:
        case dict():
            items = cast("dict[object, object]", value).items()
            return {key if isinstance(key, str) else str(key): json_value(item) for key, item in items}
        case list() | tuple():
            return [json_value(item) for item in cast("Sequence[object]", value)]
        case None | str() | bool() | int() | float():
            return value
        case _:
            return json_value(msgspec.to_builtins(value, str_keys=True))


def print_json(value: object) -> None:
    """One JSON value on stdout, in ASCII: whatever is in the store cannot drive a terminal."""
    print(json.dumps(json_value(value)))


def pretty(value: object) -> list[str]:
    """JSON for people, by lines, the first so many; to be escaped when printed."""
    lines = json.dumps(value, ensure_ascii=False, indent=2).split("\n")
    more = len(lines) - MAX_LINES
    return lines if more <= 0 else [*lines[:MAX_LINES], f"... {more} more lines; --json prints all"]


def one_line(value: object) -> str:
    """JSON for people, in one line, cut."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_LINE_CHARS else f"{text[:MAX_LINE_CHARS]} ... {len(text) - MAX_LINE_CHARS} more"


def age(seconds: float) -> str:
    """How long ago: `4.2 s`, `7 min`, `3.5 h`, `12 d`."""
    if seconds < _MINUTE_S:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < _DAY_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{seconds / _DAY_S:.0f} d"


def byte_size(size_bytes: float) -> str:
    """How much: `81 KiB`, `64 GiB`."""
    units: Sequence[str] = ("bytes", "KiB", "MiB", "GiB", "TiB")
    for unit in units[:-1]:
        if size_bytes < 1024:  # noqa: PLR2004 - what the units are made of
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.0f} {units[-1]}"


def texts(labels: dict[str, str]) -> str:
    """Labels in one line."""
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))
