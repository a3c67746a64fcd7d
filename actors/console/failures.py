"""How the command fails: an exit code that scripts can rely on, and one line that says what to do next."""

from __future__ import annotations

import enum
import json
import sys

from executus.actors.outcomes import escape
from executus.stores import ExecutusError, InvalidRunId, StoreError


class ExitCode(enum.IntEnum):
    """The exit codes of `executus`. Stable: scripts depend on them."""

    OK = 0
    FAILED = 1
    """What was asked for was done and found wrong: an invariant of the demo, a store that needs a person."""
    USAGE = 2
    STORE = 3
    """The store cannot be read: locked, damaged, too new, not there."""
    NOT_FOUND = 4
    """The store or folder is fine, what was asked for is not in it."""
    INTERRUPTED = 130


class CommandFailed(ExecutusError):
    """A command that ends with an exit code other than 0."""

    def __init__(self, code: ExitCode, message: str) -> None:
        self.code = code
        super().__init__(message)


def exit_code_of(error: ExecutusError) -> ExitCode:
    """The exit code that an error stands for."""
    if isinstance(error, CommandFailed):
        return error.code
    if isinstance(error, StoreError):
        return ExitCode.STORE
    if isinstance(error, InvalidRunId):
        return ExitCode.USAGE
    return ExitCode.FAILED


def complain(error: ExecutusError, *, as_json: bool) -> ExitCode:
    """Say it on stderr, in one line; as JSON on stdout as well, where that was asked for."""
    code = exit_code_of(error)
    if as_json:
        print(json.dumps({"error": {"kind": type(error).__name__, "exit_code": int(code), "message": str(error)}}))
    else:
        print(f"executus: {escape(str(error))}", file=sys.stderr)
    return code
