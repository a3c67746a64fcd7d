"""Plain text without rich, rich on terminals, and nothing that users wrote reaches a terminal as control characters."""

from __future__ import annotations

import sys

import pytest

from executus.actors.console.screen import PlainScreen, RichScreen, Screen, SilentScreen, screen_for
from executus.actors.console.values import age, decoded, json_value, one_line, pretty

NASTY = "red \x1b[31m [bold]no markup[/bold] \u202e \x9b next\nline"


class Terminal:
    """A stdout that says it is a terminal."""

    def __init__(self) -> None:
        self.said = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.said += text
        return len(text)

    def flush(self) -> None: ...


def terminal_for(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on, in this test, stdout is a terminal."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return terminal


def test_without_rich_a_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    screen = screen_for(as_json=False)
    assert isinstance(screen, PlainScreen)
    screen.progress(0.5, "half")
    screen.progress(1.0, "all")
    screen.say("done")
    assert "50% half" in terminal.said
    assert terminal.said.endswith("\rdone\n")


def test_with_rich_a_terminal_gets_tables_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal = terminal_for(monkeypatch)
    screen = screen_for(as_json=False)
    assert isinstance(screen, RichScreen)
    screen.progress(0.5, "half")
    screen.say("said above the bar")
    screen.table(("run", "status"), [("r1", "running")])
    screen.close()
    assert "half" in terminal.said
    assert "said above the bar" in terminal.said
    assert "running" in terminal.said


def test_a_pipe_gets_plain_text_and_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    screen = screen_for(as_json=False)
    assert isinstance(screen, PlainScreen)
    screen.progress(0.5, "half")
    screen.table(("run", "why"), [("r1", "a" * 300), ("run-2", "")])
    screen.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["run    why", f"r1     {'a' * 300}", "run-2"]


def test_json_is_alone(capsys: pytest.CaptureFixture[str]) -> None:
    screen = screen_for(as_json=True)
    screen.say("no")
    screen.progress(0.5, "no")
    screen.table((), [("no",)])
    screen.close()
    assert isinstance(screen, SilentScreen)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [PlainScreen, RichScreen])
def test_whatever_users_wrote_is_escaped_and_is_no_markup(
    kind: type[Screen], capsys: pytest.CaptureFixture[str]
) -> None:
    if kind is RichScreen:
        pytest.importorskip("rich")
    screen = kind()
    screen.say(NASTY)
    screen.table(("head",), [(NASTY,)])
    screen.close()
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert "\\x1b[31m" in out
    assert "[bold]no markup[/bold]" in out


# ------------------------------------------------------------------------------------------------------------- values


def test_stored_values_become_json_whatever_they_are() -> None:
    assert json_value({1: b"ab", "k": [(2, None), {3.5}]}) == {"1": "YWI=", "k": [[2, None], [3.5]]}


def test_what_cannot_be_decoded_safely_says_why() -> None:
    assert decoded(b"\xc1").value is None
    assert "not plain msgpack" in str(decoded(b"\xc1").why_not)
    assert "not plain msgpack" in str(decoded(b"\x91" * 100_000 + b"\xc0").why_not), "nested too deeply"
    bomb = decoded(b"\xdd\x00\x20\x00\x00" + b"\x80" * (2 * 1024 * 1024))
    assert (bomb.value, bomb.size_bytes) == (None, 2 * 1024 * 1024 + 5)
    assert "larger than" in str(bomb.why_not)


def test_long_values_are_cut_for_people() -> None:
    assert pretty(list(range(1000)))[-1] == "... 802 more lines; --json prints all"
    assert one_line("a" * 1000).endswith("... 702 more")
    assert one_line({"a": 1}) == '{"a": 1}'


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0.0 s"), (4.24, "4.2 s"), (400, "7 min"), (9000, "2.5 h"), (900_000, "10 d")]
)
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age(seconds) == text
