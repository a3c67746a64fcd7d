"""What users open: if_exists, listing, labels, policies, factories, aliases, two faces, closing."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any

import pytest

from executus.actors import (
    AsyncRuntime,
    BlockingCallOnLoop,
    Completed,
    Done,
    Factory,
    Failed,
    InvalidRunType,
    Killed,
    NotRegistered,
    RestartPolicy,
    Run,
    RunExists,
    RunInterrupted,
    RunNotFound,
    RunStatus,
    Runtime,
    RuntimeDraining,
    RuntimeNotOpen,
    SavePolicy,
    StopPolicy,
)
from executus.actors.events import RunRestarting, RunStarted
from executus.stores import MemoryStore
from tests.doubles import NEVER, SOON, AsyncFailableRun, Do, FailableRun, Rig, Told, World, rigged
from tests.waiting import await_until, ticks, wait_until

IF_EXISTS = ["raise", "return", "replace", "retry_failed"]


def existing(rig: Rig, how: str) -> None:
    """Bring a run `r` into that state."""
    match how:
        case "live":
            rig.waiting()
        case "completed":
            rig.runtime.start(FailableRun, Told(("ok",)), run_id="r").result(10)
        case "failed":
            assert isinstance(
                rig.runtime.start(FailableRun, Told(("raise:ValueError",)), run_id="r", restart_policy=NEVER).outcome(
                    10
                ),
                Failed,
            )
        case "stopped":
            rig.waiting().stop(10)
        case "killed":
            rig.waiting().kill("old", timeout_s=10)
        case "cancelled":
            rig.waiting().cancel("old", timeout_s=10)
        case _:
            raise ValueError(how)


@pytest.mark.parametrize("if_exists", IF_EXISTS)
@pytest.mark.parametrize("how", ["live", "completed", "failed", "stopped", "killed", "cancelled"])
@pytest.mark.parametrize("reboot", [False, True], ids=["same boot", "after a boot"])
def test_start_with_an_id_that_is_taken(how: str, if_exists: Any, reboot: bool) -> None:
    store = MemoryStore()
    anew = if_exists == "replace" or (if_exists == "retry_failed" and how == "failed")
    with rigged(store) as rig:
        existing(rig, how)
        if not reboot:
            _start_again(rig, how, if_exists, anew=anew)
            return
    with rigged(store) as rig:
        _start_again(rig, how, if_exists, anew=anew)


def _start_again(rig: Rig, how: str, if_exists: Any, *, anew: bool) -> None:
    again = functools.partial(
        rig.runtime.start, FailableRun, Told(("ok", "ok", "wait")), run_id="r", if_exists=if_exists
    )
    if if_exists == "raise":
        with pytest.raises(RunExists) as caught:
            again()
        assert caught.value.status is (RunStatus.RUNNING if how == "live" else RunStatus(how))
        return
    handle = again()
    if anew:
        wait_until(lambda: handle.status().waiting and handle.status().attempt == 1)
        handle.tell(Do("done"))
        assert handle.result(10) == 3
        return
    match how:
        case "live":
            wait_until(lambda: handle.status().waiting)
            handle.tell(Do("done"))
            assert handle.result(10) == 1
        case "completed":
            assert handle.result(0) == 1
        case "stopped":
            with pytest.raises(RunInterrupted):
                handle.result(0)
        case _:
            outcome = handle.outcome(0)
            assert type(outcome).__name__.lower() == how


@pytest.mark.parametrize("if_exists", IF_EXISTS)
def test_start_with_the_id_of_a_parked_run(if_exists: Any) -> None:
    store = MemoryStore()
    with Runtime(store, runs=[Factory(Newer, World())], logger=False) as runtime:
        handle = runtime.start(Newer, Told(("wait",)), run_id="r")
        wait_until(lambda: handle.status().waiting)
    with rigged(store) as rig:
        assert rig.runtime.get("r").status().status is RunStatus.PARKED
        if if_exists == "raise":
            with pytest.raises(RunExists, match="parked"):
                rig.runtime.start(FailableRun, Told(), run_id="r", if_exists=if_exists)
        elif if_exists == "replace":
            assert rig.runtime.start(FailableRun, Told(("ok",)), run_id="r", if_exists=if_exists).result(10) == 1
        else:
            with pytest.raises(RunInterrupted, match="parked"):
                rig.runtime.start(FailableRun, Told(), run_id="r", if_exists=if_exists).result(0)


class Newer(FailableRun):
    run_type = "Failable"
    schema_version = 2


def test_of_many_starters_of_one_id_one_starts_it_and_all_get_the_same_run() -> None:
    with rigged() as rig:
        got: list[Any] = []

        def start() -> None:
            got.append(rig.runtime.start(FailableRun, Told(("wait",)), run_id="r", if_exists="return"))

        threads = [threading.Thread(target=start) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: got[0].status().waiting)
        got[0].tell(Do("done"))
        assert [handle.result(10) for handle in got] == [1] * 20
        assert len(rig.seen.of(RunStarted)) == 1


def test_replace_kills_the_live_one_first_and_its_handle_hears_of_that() -> None:
    with rigged() as rig:
        old = rig.waiting()
        new = rig.runtime.start(FailableRun, Told(("ok",)), run_id="r", if_exists="replace")
        assert new.result(10) == 1
        outcome = old.outcome(10)
        assert isinstance(outcome, Killed)
        assert "replace" in outcome.by
        assert old.outcome(0) is outcome  # bound to its incarnation, not to the id


def test_a_live_run_of_another_type_is_never_returned_for_this_one() -> None:
    with rigged() as rig:
        rig.waiting()
        with pytest.raises(RunExists):
            rig.runtime.start(AsyncFailableRun, Told(), run_id="r", if_exists="return")
        with pytest.raises(TypeError, match="'Failable', not AsyncFailableRun"):
            rig.runtime.get(AsyncFailableRun, "r")


def test_get_finds_live_and_stored_runs_typed_and_untyped_and_says_what_it_does_not_know() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        rig.waiting()
        rig.runtime.start(FailableRun, Told(("ok",)), run_id="done").result(10)
        assert rig.runtime.get(FailableRun, "r").status().waiting
        assert rig.runtime.get("done").result(0) == 1
        with pytest.raises(RunNotFound, match="nobody"):
            rig.runtime.get("nobody")
        with pytest.raises(NotRegistered):
            rig.runtime.get(Newer, "r")
        with pytest.raises(NotRegistered):
            rig.runtime.start(Newer, Told())


def test_runs_lists_by_status_type_and_label_in_order_of_id() -> None:
    with rigged() as rig:
        rig.waiting(run_id="b", labels={"team": "blue", "tier": "1"})
        rig.waiting(AsyncFailableRun, run_id="a", labels={"team": "red"})
        rig.runtime.start(FailableRun, Told(), run_id="c", labels={"team": "blue"}).result(10)

        def ids(**how: Any) -> list[str]:
            return [view.run_id for view in rig.runtime.runs(**how)]

        assert ids() == ["a", "b", "c"]
        assert ids(status="running") == ["a", "b"]
        assert ids(status=RunStatus.COMPLETED) == ["c"]
        assert ids(type=FailableRun) == ["b", "c"]
        assert ids(type="AsyncFailable") == ["a"]
        assert ids(label="team=blue") == ["b", "c"]
        assert ids(label="tier") == ["b"]
        assert ids(status="running", type="Failable", label="team") == ["b"]
        with pytest.raises(ValueError, match="asleep"):
            ids(status="asleep")


def test_labels_survive_a_boot_and_wrong_ones_are_refused() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        rig.waiting(labels={"team": "blue"})
        with pytest.raises(TypeError, match="labels"):
            rig.runtime.start(FailableRun, Told(), labels={"n": 1})  # type: ignore[dict-item]
    with rigged(store) as rig:
        assert rig.runtime.get("r").status().labels == {"team": "blue"}
        assert rig.runtime.runs(label="team=blue")[0].run_id == "r"


def test_start_many_starts_all_in_order_and_raises_the_first_error() -> None:
    with rigged() as rig:
        handles = rig.runtime.start_many(
            FailableRun, {f"r{n}": Told(("ok",) * n) for n in range(100)}, labels={"bulk": "yes"}
        )
        assert [handle.result(10) for handle in handles] == list(range(100))
        with pytest.raises(RunExists):
            rig.runtime.start_many(FailableRun, {"new": Told(), "r1": Told()})
        assert rig.runtime.get("new").result(10) == 0
        assert len(rig.runtime.runs(label="bulk=yes")) == 100


def test_policies_given_to_start_override_those_of_the_class_and_survive_a_boot() -> None:
    store = MemoryStore()
    with rigged(store, restart_policy=RestartPolicy(max_restarts=0)) as rig:
        rig.waiting(told=Told(("wait", "raise:ValueError")), restart_policy=RestartPolicy(max_restarts=2, backoff=SOON))
    with rigged(store, restart_policy=RestartPolicy(max_restarts=0)) as rig:
        handle = rig.runtime.get("r")
        wait_until(lambda: handle.status().waiting)
        handle.tell(Do("go"))
        outcome = handle.outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.restarts == 2
        assert len(rig.seen.of(RunRestarting)) == 2


class Careful(FailableRun):
    run_type = "Careful"
    restart_policy = NEVER
    stop_policy = StopPolicy(grace_s=1)


def test_a_class_that_sets_a_policy_keeps_it_and_takes_the_others_from_the_runtime() -> None:
    with rigged(None, Factory(Careful, World()), save_policy=SavePolicy(durability="sync")) as rig:
        policies = rig.runtime._core.registry.of(Careful).policies
        assert (policies.restart, policies.stop.grace_s, policies.save.durability) == (NEVER, 1, "sync")
        assert isinstance(rig.runtime.start(Careful, Told(("raise:ValueError",))).outcome(10), Failed)


class Greets(Run[str, str, str]):
    def __init__(self, greeting: str, *, mark: str = ".") -> None:
        self.greeting = greeting
        self.mark = mark

    def begin(self, name: str) -> Done[str]:
        return Done(f"{self.greeting} {name}{self.mark}")

    def step(self, state: str) -> str:
        raise NotImplementedError


def test_a_factory_hands_resources_to_every_instance() -> None:
    with Runtime(None, runs=[Factory(Greets, "Hello", mark="!")], logger=False) as runtime:
        assert runtime.start(Greets, "you").result(10) == "Hello you!"


def test_any_zero_argument_callable_with_a_run_type_is_registered_under_it() -> None:
    def make() -> Greets:
        return Greets("Hi")

    make.run_type = "Polite"  # type: ignore[attr-defined]
    store = MemoryStore()
    with Runtime(store, runs=[make], logger=False) as runtime:
        assert runtime.start(Greets, "you", run_id="r").result(10) == "Hi you."
        assert runtime.runs()[0].run_type == "Polite"


class Renamed(FailableRun):
    run_type = "NewName"
    aliases = ("Failable",)


def test_a_renamed_class_resumes_the_runs_of_its_alias() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        rig.waiting()
    with Runtime(store, runs=[Factory(Renamed, World())], logger=False) as runtime:
        handle = runtime.get(Renamed, "r")
        wait_until(lambda: handle.status().waiting)
        handle.tell(Do("done"))
        assert handle.result(10) == 1


def test_two_runs_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidRunType, match="two run types"):
        Runtime(None, runs=[FailableRun, Renamed])
    with pytest.raises(InvalidRunType, match="two run types"):
        Runtime(None, runs=[FailableRun, Newer])


def test_a_runtime_that_is_not_open_says_so() -> None:
    runtime = Runtime(None, runs=[FailableRun], logger=False)
    with pytest.raises(RuntimeNotOpen, match="new"):
        runtime.start(FailableRun, Told())
    with runtime, pytest.raises(RuntimeNotOpen):
        runtime.open()
    for verb in (
        lambda: runtime.start(FailableRun, Told()),
        lambda: runtime.get("r"),
        runtime.runs,
        runtime.health,
        lambda: runtime.resume("r"),
        lambda: runtime.drain(1),
    ):
        with pytest.raises(RuntimeNotOpen, match="closed"):
            verb()  # type: ignore[operator]
    runtime.close()


def test_start_and_resume_are_refused_while_draining() -> None:
    with rigged() as rig:
        rig.waiting().stop(10)
        rig.runtime.drain(1)
        with pytest.raises(RuntimeDraining):
            rig.runtime.start(FailableRun, Told())
        with pytest.raises(RuntimeDraining):
            rig.runtime.resume("r")
        assert [view.run_id for view in rig.runtime.runs()] == ["r"]


def test_join_waits_until_no_run_is_live() -> None:
    with rigged() as rig:
        handle = rig.waiting()
        assert not rig.runtime.join(0.05)
        handle.tell(Do("done"))
        assert rig.runtime.join(10)
        assert handle.result(0) == 1


def test_two_runtimes_live_in_one_process_each_with_its_own_runs() -> None:
    with rigged() as one, rigged() as two:
        one.waiting()
        assert two.runtime.runs() == []
        assert two.runtime.start(FailableRun, Told(("ok",)), run_id="r").result(10) == 1
        assert one.runtime.get("r").status().waiting


def test_starting_the_same_runs_ten_times_over_leaves_the_table_empty() -> None:
    with rigged() as rig:
        for number in range(10):
            for handle in rig.runtime.start_many(FailableRun, {f"{number}-{n}": Told() for n in range(100)}):
                assert handle.result(10) == 0
        wait_until(lambda: not rig.runtime._core.table)
        supervisor = rig.runtime._core.tree.runs
        assert supervisor is not None
        desk = supervisor._actor_weakref().desk  # type: ignore[union-attr]
        assert not desk._pending
        wait_until(lambda: not desk._timers)
        assert not rig.runtime._core._unanswered


# --- the face for coroutines -------------------------------------------------------------------------------------------


def async_runtime(store: Any = None, world: World | None = None, **options: Any) -> AsyncRuntime:
    world = world or World()
    return AsyncRuntime(
        store,
        runs=[Factory(FailableRun, world), Factory(AsyncFailableRun, world)],
        restart_policy=RestartPolicy(backoff=SOON),
        logger=False,
        **options,
    )


def test_blocking_verbs_on_a_running_loop_raise_and_name_their_twin() -> None:
    async def main() -> None:
        with pytest.raises(BlockingCallOnLoop, match="async with AsyncRuntime"):
            Runtime(None, runs=[FailableRun]).open()
        for verb in (
            runtime.join,
            runtime.drain,
            lambda: runtime.start(FailableRun, Told()),
            lambda: runtime.resume("r"),
            handle.result,
            handle.outcome,
            handle.stop,
            handle.durable,
            lambda: handle.ask(Do("x")),
            lambda: handle.query("at"),
            handle.cancel,
            handle.kill,
            runtime.close,
        ):
            with pytest.raises(BlockingCallOnLoop, match=r"await|async with"):
                verb()  # type: ignore[operator]
        assert await handle == 1

    with rigged() as rig:
        runtime = rig.runtime
        handle = rig.waiting()
        handle.tell(Do("done"))
        asyncio.run(main())


def test_async_callbacks_run_on_the_hosts_loop_and_sync_ones_off_it() -> None:
    threads: dict[str, int] = {}

    class Where(Run[str, str, str]):
        async def begin(self, name: str) -> str:
            threads["begin"] = threading.get_ident()
            return name

        def step(self, state: str) -> Done[str]:
            threads["step"] = threading.get_ident()
            return Done(state)

    async def main(loop: Any) -> None:
        async with AsyncRuntime(None, runs=[Where], loop=loop, logger=False) as runtime:
            assert await (await runtime.start(Where, "x")) == "x"

    asyncio.run(main("host"))
    assert threads["begin"] == threading.get_ident() != threads["step"]
    asyncio.run(main("own"))
    assert threads["begin"] != threading.get_ident()


def test_the_async_face_has_the_same_verbs() -> None:
    async def main() -> None:
        store, world = MemoryStore(), World()
        async with async_runtime(store, world) as runtime:
            handle = await runtime.start(AsyncFailableRun, Told(("wait",)), run_id="r")
            assert await handle.query("at", 10) in {0, 1}
            assert await handle.durable(10) >= 0
            assert await (await runtime.start_many(FailableRun, {"a": Told(("ok",)), "b": Told()}))[0] == 1
            await await_until(lambda handle=handle: handle.status().waiting)
            await handle.stop(10)
            with pytest.raises(RunInterrupted):
                await handle
            handle = await runtime.resume("r")
            await await_until(lambda handle=handle: handle.status().waiting)
            handle.tell(Do("done"))
            assert await handle.result(10) == 1
            assert await handle.outcome() == Completed(1)
            assert await (await runtime.get(AsyncFailableRun, "r")) == 1
            assert [view.run_id for view in await runtime.runs()] == ["a", "b", "r"]
            assert await runtime.join(10)
            killed = await runtime.start(AsyncFailableRun, Told(("hang",)))
            await killed.kill("now", timeout_s=10)
            cancelled = await runtime.start(AsyncFailableRun, Told(("wait",)))
            await cancelled.cancel("now", timeout_s=10)
            assert (await runtime.drain(1)).unsaved == ()
            with pytest.raises(RuntimeDraining):
                await runtime.start(FailableRun, Told())

    asyncio.run(main())


def test_cancelling_a_waiter_never_cancels_the_run_unless_it_asked_for_that() -> None:
    async def main() -> None:
        async with async_runtime() as runtime:
            for cancel_run in (False, True):
                handle = await runtime.start(AsyncFailableRun, Told(("wait",)))
                await await_until(lambda handle=handle: handle.status().waiting)
                waiter = asyncio.create_task(handle.result(cancel_run=cancel_run))
                await asyncio.sleep(0)
                waiter.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiter
                if not cancel_run:
                    handle.tell(Do("done"))
                    assert await handle == 1
                else:
                    assert type(await handle.outcome(10)).__name__ == "Cancelled"

    asyncio.run(main())


def test_a_cancelled_host_still_closes_its_runtime_and_suspends_the_runs() -> None:
    store = MemoryStore()

    async def main() -> None:
        async with async_runtime(store, drain_timeout_s=2) as runtime:
            handle = await runtime.start(AsyncFailableRun, Told(("wait",)), run_id="r")
            await await_until(lambda handle=handle: handle.status().waiting)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    with rigged(store) as rig:
        wait_until(lambda: rig.runtime.get("r").status().waiting)
        assert rig.runtime.get("r").status().strikes == 0


def test_the_loop_stays_awake_during_a_blocking_step_a_slow_start_and_a_close() -> None:
    async def main() -> None:
        lags: list[float] = []
        stop = asyncio.Event()

        async def watch() -> None:
            loop = asyncio.get_running_loop()
            while not stop.is_set():
                due_s = loop.time() + 0.01
                await ticks(0.01)
                lags.append(loop.time() - due_s)

        watcher = asyncio.create_task(watch())
        async with async_runtime() as runtime:
            handles = [await runtime.start(FailableRun, Told(("sleep:0.3",))) for _ in range(8)]
            for handle in handles:
                await handle
        stop.set()
        await watcher
        assert len(lags) > 15
        assert sorted(lags)[len(lags) // 2] < 0.25  # a blocked loop would lag by whole steps

    asyncio.run(main())
