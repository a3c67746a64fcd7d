"""What a user holds of a run: `RunHandle` for threads, `AsyncRunHandle` for coroutines, over the same incarnation."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from executus.actors.errors import BlockingCallOnLoop, InvalidMessage, NotDurable, QueryFailed
from executus.actors.future import Promise
from executus.actors.incarnation import Ending, Incarnation, Letter, RunView, ended_error, result_of
from executus.actors.messages import EndRun, SaveNow, SendMessage
from executus.actors.outcomes import CancelRequested, Cause, ErrorInfo, KillRequested, Outcome, StopRequested
from executus.stores import ExecutusError

if TYPE_CHECKING:
    from executus.actors.core import Core
    from executus.actors.save_slot import SaveSlot

R = TypeVar("R")


class _Handle(Generic[R]):
    """The part of both handles that never waits."""

    __slots__ = ("_core", "_inc")

    def __init__(self, core: Core, incarnation: Incarnation) -> None:
        self._core = core
        self._inc = incarnation

    def __repr__(self) -> str:
        view = self.status()
        return f"<{type(self).__name__} {self.run_id!r} {view.run_type} {view.status.value}>"

    @property
    def run_id(self) -> str:
        """The run's id, in NFC."""
        return self._inc.run_id

    def status(self) -> RunView:
        """Where the run stands now.

        `seq` counts completed callbacks; those up to `durable_seq` survive a crash right now.
        """
        return self._current().view()

    def tell(self, message: object) -> None:
        """Put a message into the run's mailbox. It survives restarts of the run, not of the process.

        Raises InvalidMessage, MailboxFull, RunEnded, or RunInterrupted for a run that rests. Never blocks.
        """
        inc = self._current()
        inc.definition.check_message(message)
        inc.put(Letter(message))

    def _send(self, message: object, message_id: str | None, expires_s: float | None) -> tuple[str, Promise[int]]:
        # Not the present object: what is asked of the incarnation here is the same in all of them, and the store may
        # have to be read for it.
        inc, core = self._inc, self._core
        outgoing = core.outgoing(inc.definition, message, message_id, expires_s)
        reply: Promise[int] = Promise()
        if inc.durable:
            core.tell_supervisor(SendMessage(inc.run_id, inc.incarnation, inc.inbox_limit, outgoing, reply), reply)
        else:
            reply.try_fail(NotDurable(inc.run_id))
        return outgoing.message_id, reply

    def monitor(self, callback: Callable[[Ending], object]) -> None:
        """Call `callback(ending)` once, when the run has ended or rests (suspended, stopped); at once if it has.

        On the thread that ends it; keep it short. What it raises is contained.
        """
        self._watched().ending.add_done_callback(lambda promise: callback(promise.result(0)))

    def _current(self) -> Incarnation:
        """The incarnation's present object: a stopped run that was resumed by hand has another one."""
        self._core.check_process()
        if self._inc.ending.done():
            self._inc = self._core.present(self._inc)
        return self._inc

    def _watched(self) -> Incarnation:
        """The present object, for somebody who waits for its end and may let go of this handle."""
        inc = self._current()
        self._core.dormitory.keep(inc)
        return inc

    def _ask(self, message: object) -> Promise[Any]:
        inc = self._current()
        inc.definition.check_message(message)
        answer: Promise[Any] = Promise()
        inc.put(Letter(message, answer))
        return answer

    def _query(self, question: object) -> Promise[Any]:
        answer: Promise[Any] = Promise()
        inc = self._current()

        def go_on(error: ExecutusError | None) -> None:
            if error is not None:
                answer.try_fail(error)
            elif (slot := inc.slot) is None and not inc.ending.done():  # it was passivated at this moment
                self._when_begun(inc, go_on)
            else:
                _answer_query(self._core, inc, slot, question, answer)

        self._when_begun(inc, go_on)
        return answer

    def _durable(self) -> Promise[int]:
        promise: Promise[int] = Promise()
        inc = self._current()
        if not inc.durable:
            promise.try_fail(InvalidMessage(f"run {inc.run_id!r} has durability 'none': nothing of it is ever stored"))
            return promise

        def go_on(error: ExecutusError | None) -> None:
            slot = inc.slot
            if error is None and slot is None and not inc.ending.done():  # it was passivated at this moment
                self._when_begun(inc, go_on)
                return
            if error is not None or slot is None or slot.published is None:
                promise.try_fail(error or ExecutusError(f"run {inc.run_id!r} has no state to store"))
                return
            inc.durable_waiters.append((slot.published.seq, promise))
            # Looked up again: a restart sees the waiter, or we see its slot.
            self._core.tree.tell_store(SaveNow(inc.slot or slot))
            if inc.ending.done():  # it ended between; nobody else would answer
                inc.fail_waiters(ended_error(inc.run_id, inc.ending.result(0)))

        self._when_begun(inc, go_on)
        return promise

    def _when_begun(self, inc: Incarnation, go_on: Callable[[ExecutusError | None], None]) -> None:
        """Call `go_on` once there is a state, or with the error that says why there is none."""
        inc.waiting_for_begin.append(go_on)
        slot = inc.slot
        if inc.ending.done():
            inc.flush_queries(ended_error(inc.run_id, inc.ending.result(0)))
        elif slot is not None and slot.published is not None:
            inc.flush_queries()
        else:
            inc.wake_if_passivated()

    def _end(self, cause: Cause) -> Promise[None]:
        inc = self._current()
        reply: Promise[None] = Promise()
        self._core.tell_supervisor(EndRun(inc.run_id, inc.incarnation, cause, reply), reply)
        return reply


def _answer_query(core: Core, inc: Incarnation, slot: SaveSlot | None, question: object, answer: Promise[Any]) -> None:
    """Run `query` on the last completed state: on a worker, or on the loop if it is async.

    Never on the thread that asked.
    """
    published = None if slot is None else slot.published
    if published is None:
        answer.try_fail(
            ended_error(inc.run_id, inc.ending.result(0))
            if inc.ending.done()
            else ExecutusError(f"run {inc.run_id!r} has no state yet")
        )
        return
    run = inc.run if inc.run is not None else inc.definition.make()
    state = published.state
    if published.encoded:
        state = inc.definition.states.decode(published.state, published.journals)
    if "query" in inc.definition.async_callbacks:
        loop = core.env.loop
        assert loop is not None

        async def call() -> None:
            try:
                answer.try_set(await run.query(state, question))
            except BaseException as error:  # noqa: BLE001 - the asker's, whatever it is; a SystemExit must not reach the loop
                answer.try_fail(_harmless(inc.run_id, error))

        # A context of its own: a query has no RunContext, even when asked from inside a callback.
        loop.call_soon_threadsafe(lambda: loop.create_task(call(), context=contextvars.Context()))
        return
    job = core.env.workers.submit(lambda: run.query(state, question))

    def settle(done: Promise[Any]) -> None:
        error = done.error()
        if error is not None:
            answer.try_fail(_harmless(inc.run_id, error))
        else:
            answer.try_set(done.result(0))

    job.add_done_callback(settle)


def _harmless(run_id: str, error: BaseException) -> Exception:
    """What a query raised, for its asker: a SystemExit or CancelledError raised there would end the asker, too."""
    if isinstance(error, Exception):
        return error
    failed = QueryFailed(f"run {run_id!r}: its query raised {ErrorInfo.of(error)}")
    failed.__cause__ = error
    return failed


class RunHandle(_Handle[R]):
    """A run, for threads. Stays good over restarts of its run; bound to this incarnation of the id.

    The verbs that wait raise BlockingCallOnLoop on a running event loop. `await handle` works on any loop.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, R]:
        """The result, for a coroutine. Cancelling the waiter does not cancel the run."""
        inc = self._watched()
        ending = yield from inc.ending.__await__()
        return result_of(inc.run_id, ending)  # type: ignore[no-any-return]

    def result(self, timeout_s: float | None = None) -> R:
        """Wait for the result.

        Raises RunFailed, RunKilled, RunCancelled, RunTimedOut or RunQuarantined for the other endings, RunInterrupted
        for a run that is suspended, stopped or parked, and WaitTimeout, after which the run goes on.
        """
        refuse_on_loop("RunHandle.result()", "await handle")
        inc = self._current()
        return result_of(inc.run_id, inc.ending.result(timeout_s))  # type: ignore[no-any-return]

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the outcome, whatever it is. Raises RunInterrupted and WaitTimeout."""
        refuse_on_loop("RunHandle.outcome()", "await AsyncRunHandle.outcome()")
        inc = self._current()
        return _outcome_of(inc, inc.ending.result(timeout_s))

    def send(
        self,
        message: object,
        *,
        message_id: str | None = None,
        expires_s: float | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """Send a durable message. When this returns, it is committed, and the run will hear it, whatever crashes.

        The run hears messages in the order of their commits, each once as far as its state goes: a message is consumed
        in the commit that stores the state which `receive` returned for it. After a crash before that commit the state
        from before the message is restored and `receive` is called with it again, so that what `receive` does to the
        world outside happens at least once; `context.idempotency_key` is the same each time. A run that is suspended,
        stopped, parked or quarantined, or has no outcome yet for another reason, hears it when it goes on.

        `message_id` makes sending repeatable: an id that this run has taken before is accepted without effect, as long
        as it is pending and for at least the next 1,000 messages after it was consumed, restarts and the run's end
        included. Without one, an id is drawn. Returns the id. A message that is not heard within `expires_s` seconds
        is dropped, which the event MessageExpired tells. One that is still pending when its run ends for good goes with
        it, which MessagesLost tells.

        Raises InvalidMessage, ValueError, NotDurable (durability "none"), RunEnded (a failed one as well; resume it
        first), InboxFull, RuntimeDraining, RunNotFound: the message was not taken. SendFailed, RuntimeNotOpen and
        WaitTimeout do not say whether it was: send it again with the same id.
        """
        refuse_on_loop("RunHandle.send()", "await AsyncRunHandle.send()")
        sent_id, reply = self._send(message, message_id, expires_s)
        reply.result(timeout_s)
        return sent_id

    def ask(self, message: object, timeout_s: float | None = None) -> Any:
        """Put a message into the mailbox and wait for its Reply.

        Raises NoReply, RunCrashed when the run crashed with it in hand, RunEnded, RunInterrupted, WaitTimeout, and
        what tell raises.
        """
        refuse_on_loop("RunHandle.ask()", "await AsyncRunHandle.ask()")
        return self._ask(message).result(timeout_s)

    def query(self, question: object, timeout_s: float | None = None) -> Any:
        """Ask about the last completed state, beside whatever the run is doing. What `query` raises is raised here."""
        refuse_on_loop("RunHandle.query()", "await AsyncRunHandle.query()")
        return self._query(question).result(timeout_s)

    def durable(self, timeout_s: float | None = None) -> int:
        """Save the newest state now and wait for it. Returns the durable seq; raises what kept it from the store."""
        refuse_on_loop("RunHandle.durable()", "await AsyncRunHandle.durable()")
        return self._durable().result(timeout_s)

    def stop(self, timeout_s: float | None = None) -> None:
        """End it after the callback in hand and `stopping`; it stays stopped until `resume()`. Returns when it has."""
        refuse_on_loop("RunHandle.stop()", "await AsyncRunHandle.stop()")
        self._end(StopRequested()).result(timeout_s)

    def cancel(self, reason: str = "", *, by: str = "handle", timeout_s: float | None = None) -> None:
        """End it for good after the callback in hand and `stopping`. Returns when it has."""
        refuse_on_loop("RunHandle.cancel()", "await AsyncRunHandle.cancel()")
        self._end(CancelRequested(by, reason)).result(timeout_s)

    def kill(self, reason: str = "", *, by: str = "handle", timeout_s: float | None = None) -> None:
        """End it for good, without `stopping`: the tombstone is committed first, so that no reboot resurrects it.

        Returns when it has ended.
        """
        refuse_on_loop("RunHandle.kill()", "await AsyncRunHandle.kill()")
        self._end(KillRequested(by, reason)).result(timeout_s)


class AsyncRunHandle(_Handle[R]):
    """A run, for coroutines: as RunHandle, and whatever waits is awaited. Cancelling a waiter never cancels the run."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, R]:
        """The result."""
        return self.result().__await__()

    async def result(self, timeout_s: float | None = None, *, cancel_run: bool = False) -> R:
        """See RunHandle.result. With `cancel_run` a waiter that is cancelled, or times out, cancels the run as well."""
        inc = self._watched()
        try:
            ending = await _within(inc.ending, timeout_s)
        except (asyncio.CancelledError, TimeoutError):
            if cancel_run:
                self._end(CancelRequested("waiter", "its waiter was cancelled"))
            raise
        return result_of(inc.run_id, ending)  # type: ignore[no-any-return]

    async def outcome(self, timeout_s: float | None = None) -> Outcome:
        """See RunHandle.outcome."""
        inc = self._watched()
        return _outcome_of(inc, await _within(inc.ending, timeout_s))

    async def send(
        self,
        message: object,
        *,
        message_id: str | None = None,
        expires_s: float | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """See RunHandle.send. Who is cancelled while waiting for it does not know whether it was taken."""
        sent_id, reply = self._send(message, message_id, expires_s)
        await _within(reply, timeout_s)
        return sent_id

    async def ask(self, message: object, timeout_s: float | None = None) -> Any:
        """See RunHandle.ask."""
        return await _within(self._ask(message), timeout_s)

    async def query(self, question: object, timeout_s: float | None = None) -> Any:
        """See RunHandle.query."""
        return await _within(self._query(question), timeout_s)

    async def durable(self, timeout_s: float | None = None) -> int:
        """See RunHandle.durable."""
        return await _within(self._durable(), timeout_s)

    async def stop(self, timeout_s: float | None = None) -> None:
        """See RunHandle.stop."""
        await _within(self._end(StopRequested()), timeout_s)

    async def cancel(self, reason: str = "", *, by: str = "handle", timeout_s: float | None = None) -> None:
        """See RunHandle.cancel."""
        await _within(self._end(CancelRequested(by, reason)), timeout_s)

    async def kill(self, reason: str = "", *, by: str = "handle", timeout_s: float | None = None) -> None:
        """See RunHandle.kill."""
        await _within(self._end(KillRequested(by, reason)), timeout_s)


T = TypeVar("T")


async def _within(promise: Promise[T], timeout_s: float | None) -> T:
    """Await a promise, at most so long. Raises WaitTimeout."""
    if timeout_s is None:
        return await promise
    done, _ = await asyncio.wait({waiter := asyncio.ensure_future(_awaiting(promise))}, timeout=timeout_s)
    if not done:
        waiter.cancel()
        return promise.result(0)  # raises WaitTimeout, unless it came at the last moment
    return waiter.result()


async def _awaiting(promise: Promise[T]) -> T:
    return await promise


def _outcome_of(inc: Incarnation, ending: Ending) -> Outcome:
    if ending.outcome is None:
        raise ended_error(inc.run_id, ending)
    return ending.outcome


def refuse_on_loop(verb: str, twin: str) -> None:
    """Raise BlockingCallOnLoop on a thread whose event loop is running."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - get_running_loop() raises instead of answering
        raise BlockingCallOnLoop(verb, twin)
