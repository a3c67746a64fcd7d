"""`ToolContext`: what a call notes and attaches is its own, and nothing once the call is over."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from executus.actors.agents.agent import Note
from executus.actors.agents.errors import ToolError
from executus.actors.agents.parts import Image
from executus.actors.agents.tool_context import MAX_ATTACHED_BYTES, MAX_NOTES_BYTES
from executus.actors.incarnation import Progress
from tests.agents.tool_parts import INFO, a_context, a_run

PNG = Image(b"\x89PNG")


def test_a_call_knows_its_run_its_id_and_its_key() -> None:
    context = a_context("c7")
    assert (context.info, context.call_id, context.idempotency_key) == (INFO, "c7", "key-of-c7")
    assert context.log is not None
    assert not context.cancelled


def test_notes_add_to_those_of_the_run() -> None:
    context = a_context(notes=(Note("seen", "1"),))
    context.note("sources", ["a", {"b": None}])
    context.note("sources", 2)
    assert context.noted == (Note("sources", '["a",{"b":null}]'), Note("sources", "2"))
    assert context.notes == (Note("seen", "1"), *context.noted)


class Unencodable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("name", "value"),
    [("a", object()), ("a", Unencodable()), ("a", "\ud800"), ("a", {(1, 2): 3}), ("\ud800", 1), (7, 1), ("a", 1j)],
)
def test_a_note_that_json_cannot_hold_is_refused(name: Any, value: object) -> None:
    context = a_context()
    with pytest.raises(ToolError, match="cannot be kept as JSON"):
        context.note(name, value)
    assert context.noted == ()


def test_a_note_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ToolError, match="recursion"):
        a_context().note("a", endless)


def test_images_are_attached_in_order_all_of_them_or_none() -> None:
    context = a_context()
    other = Image(b"GIF", "image/gif")
    context.attach_images(PNG, other)
    context.attach_images()
    context.attach_images(PNG)
    assert context.attached == (PNG, other, PNG)
    for bad in (b"raw", Image(cast("Any", "text")), Image(b"", cast("Any", None)), Image(b"", "image/\ud800")):
        with pytest.raises(ToolError, match=r"takes images as Image\(data, media_type\)"):
            context.attach_images(PNG, cast("Any", bad))
    assert context.attached == (PNG, other, PNG)


def test_heartbeats_progress_and_sleep_are_the_runs() -> None:
    run = a_run()
    context = a_context(run=run)
    context.heartbeat("here")
    context.progress(1, 2, "half")
    context.sleep(3.0)
    assert (run.heartbeats, run.progressed, run.slept) == (["here"], [Progress(1, 2, "half")], [3.0])
    run.cancelled = True
    assert context.cancelled


@pytest.mark.parametrize(
    "late",
    [
        lambda context: context.note("a", 1),
        lambda context: context.attach_images(PNG),
        lambda context: context.heartbeat(),
        lambda context: context.progress(1),
        lambda context: context.sleep(1),
    ],
)
def test_a_call_that_is_over_can_do_nothing_any_more(late: Any) -> None:
    run = a_run()
    context = a_context(run=run)
    context.note("in time", 1)
    context.end()
    assert context.cancelled
    with pytest.raises(ToolError, match="this call is over"):
        late(context)
    assert (context.noted, context.attached) == ((Note("in time", "1"),), ())
    assert (run.heartbeats, run.progressed, run.slept) == ([], [], [])


def test_notes_of_several_threads_of_one_call_are_all_kept() -> None:
    context = a_context()

    def note_many() -> None:
        for at in range(200):
            context.note("n", at)
            context.attach_images(PNG)

    threads = [threading.Thread(target=note_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(context.noted) == len(context.attached) == 800


def test_what_would_be_too_much_for_a_record_is_refused_and_what_is_there_stays() -> None:
    context = a_context(notes=(Note("seen", "x" * (MAX_NOTES_BYTES - 10)),))
    context.note("few", "abc")
    with pytest.raises(ToolError, match="one too many"):
        context.note("more", "abcdef")
    assert [note.name for note in context.noted] == ["few"]
    large = Image(b"x" * (MAX_ATTACHED_BYTES - 1))
    context.attach_images(large)
    with pytest.raises(ToolError, match="the most is"):
        context.attach_images(Image(b"xy"))
    context.attach_images(Image(b"x"))
    assert context.attached == (large, Image(b"x"))
