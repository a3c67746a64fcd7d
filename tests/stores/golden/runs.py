"""The run types of the golden stores. They must go on fitting what was written: change nothing that is stored."""

from __future__ import annotations

from typing import Any

import msgspec

from executus.actors import ChildEnded, Done, RestartPolicy, Run, SavePolicy, Wait, WaitExpired

try:
    from executus.actors import Journal
except ImportError:  # the code that makes an old store has none
    Journal = None  # type: ignore[assignment, misc]

try:
    from executus.actors import Blob
    from executus.actors.agents import Agent, Agents, Invocation, Phase, Reply, ScriptedModel, call, say, tool
except ImportError:  # same
    Agents = None  # type: ignore[assignment, misc]


class Kept(msgspec.Struct, frozen=True):
    n: int
    note: str = ""
    seen: frozenset[str] = frozenset()


class Keeper(Run[int, Kept, int]):
    """Adds what it is told; 0 ends it."""

    run_type = "golden.Keeper"
    save_policy = SavePolicy(durability="sync")

    def begin(self, n: int) -> Wait[Kept]:
        return Wait(Kept(n, "n\u00e4ive", frozenset({"a", "b"})))

    def step(self, state: Kept) -> Done[int]:
        return Done(state.n)

    def receive(self, state: Kept, message: int) -> Any:
        return state if message == 0 else Wait(msgspec.structs.replace(state, n=state.n + message))

    def query(self, state: Kept, question: str) -> int:
        return state.n


class KeptAtTwo(msgspec.Struct, frozen=True):
    total: int


class UpgradedKeeper(Run[int, KeptAtTwo, int]):
    """The next release of Keeper."""

    run_type = "golden.Keeper"
    schema_version = 2

    def begin(self, n: int) -> Wait[KeptAtTwo]:
        return Wait(KeptAtTwo(n))

    def step(self, state: KeptAtTwo) -> Done[int]:
        return Done(state.total)

    def receive(self, state: KeptAtTwo, message: int) -> Any:
        return state if message == 0 else Wait(KeptAtTwo(state.total + message))

    def query(self, state: KeptAtTwo, question: str) -> int:
        return state.total

    def upgrade(self, version: int, raw: Any) -> KeptAtTwo:
        assert version == 1
        return KeptAtTwo(raw["n"])


class Unknown(Keeper):
    run_type = "golden.Unknown"


class Fails(Run[int, Kept, int]):
    run_type = "golden.Fails"
    restart_policy = RestartPolicy(kind="temporary")

    def begin(self, n: int) -> Kept:
        return Kept(n)

    def step(self, state: Kept) -> Kept:
        raise ValueError("told to")


class Parent(Run[int, Kept, int]):
    """Spawns a child that ends at once, and saves so seldom that its end is owed."""

    run_type = "golden.Parent"
    save_policy = SavePolicy(every_s=3600)

    def begin(self, n: int) -> Wait[Kept]:
        self.context.spawn(Ends, n, key="kid")
        return Wait(Kept(n))

    def step(self, state: Kept) -> Done[int]:
        return Done(state.n)

    def receive(self, state: Kept, message: ChildEnded) -> Wait[Kept]:
        return Wait(msgspec.structs.replace(state, n=state.n + 100))

    def query(self, state: Kept, question: str) -> int:
        return state.n


class Ends(Run[int, Kept, int]):
    run_type = "golden.Ends"

    def begin(self, n: int) -> Kept:
        return Kept(n)

    def step(self, state: Kept) -> Done[int]:
        return Done(state.n)


RUNS: list[Any] = [Keeper, Fails, Parent, Ends]

if Journal is not None:

    class Said(msgspec.Struct, frozen=True):
        lines: Journal[str]

    class Chat(Run[int, Said, int]):
        """A journal that is appended to and rewritten."""

        run_type = "golden.Chat"
        save_policy = SavePolicy(durability="sync")

        def begin(self, n: int) -> Wait[Said]:
            return Wait(Said(Journal(f"line {number}" for number in range(n))))

        def step(self, state: Said) -> Done[int]:
            return Done(len(state.lines))

        def receive(self, state: Said, message: str) -> Any:
            if message == "end":
                return state
            if message == "rewrite":
                return Wait(Said(state.lines.replaced(["summary", *state.lines.last(2)])))
            return Wait(Said(state.lines.append(message)))

        def query(self, state: Said, question: str) -> list[str]:
            return list(state.lines)

    RUNS.append(Chat)


if "passivate_after_s" in SavePolicy.__struct_fields__:

    class Patience(msgspec.Struct, frozen=True):
        timeout_s: float | None = None
        until_s: float | None = None

    class Sleeper(Run[Patience, int, int]):
        """Rests in the store, until it is told a number or its time has come."""

        run_type = "golden.Sleeper"
        save_policy = SavePolicy(passivate_after_s=0.01)

        def begin(self, patience: Patience) -> Wait[int]:
            return Wait(0, timeout_s=patience.timeout_s, until=patience.until_s)

        def step(self, state: int) -> Done[int]:
            return Done(state)

        def receive(self, state: int, message: int | WaitExpired) -> Done[int]:
            return Done(-1 if isinstance(message, WaitExpired) else message)

        def query(self, state: int, question: str) -> int:
            return state

    RUNS.append(Sleeper)


if Agents is not None:

    class Page(msgspec.Struct, frozen=True):
        title: str
        picture: Blob

    class Pictures(msgspec.Struct, frozen=True):
        cover: Blob
        pages: Journal[Page]

    def picture(kind: bytes) -> Blob:
        return Blob(kind * 100_000)

    class Album(Run[int, Pictures, int]):
        """Large bytes in the state and in items of a journal; the cover is one of the pages, too."""

        run_type = "golden.Album"
        save_policy = SavePolicy(durability="sync")

        def begin(self, n: int) -> Wait[Pictures]:
            pages = (Page("one", picture(b"1")), Page("two", picture(b"2")), Page("small", Blob(b"s")))
            return Wait(Pictures(picture(b"1"), Journal(pages)))

        def step(self, state: Pictures) -> Done[int]:
            return Done(len(state.pages))

        def receive(self, state: Pictures, message: str) -> Any:
            return state

        def query(self, state: Pictures, question: str) -> list[int]:
            return [len(state.cover), *(len(page.picture) for page in state.pages)]

    RUNS.append(Album)

    hangs: set[str] = set()
    """Filled while a store is made: the models that never answer their second request."""

    def script(request: Any) -> Reply:
        if not request.step:
            return say("I look.") + call("look", what="sky") + call("launch", what="rocket")
        results = [message.text for message in request.messages if message.role == "tool"]
        last = say("; ".join(results))
        return last.after(1e9) if request.system in hangs else last

    @tool(effect="pure")
    def look(what: str) -> str:
        return f"{what} seen"

    @tool(effect="unsafe")
    def launch(what: str) -> str:
        return f"{what} launched"

    def count(context: Any) -> str:
        return str(len(context.outputs))

    AGENTS = Agents(
        [
            Agent(id="watcher", system="Watch.", tools=("look", "launch"), keep_transcript=True),
            Agent(
                id="reporter",
                tools=("look", "launch"),
                keep_transcript=True,
                phases=(
                    Phase(name="first", system="First."),
                    Phase(name="count", function="count"),
                    Phase(name="second", system="Second.", prompt="Of ${first}: ${prompt}"),
                ),
            ),
        ],
        models={"default": ScriptedModel(script)},
        tools=[look, launch],
        functions={"count": count},
        audit=None,
    )
    ASKED = Invocation(prompt="What is up?", caller="ann", channel="#sky", inputs={"place": "here"})
    RUNS.extend(AGENTS.runs)
