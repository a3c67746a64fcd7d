"""The README is true: every Python block runs as a program, prints what it shows, and every name and default in it exists.

A block is fenced as ```python, or ```python NAME.py, under which name later blocks import it. What it prints is shown by
`# -> …` comments or by a ```text block right behind it, and must be exactly that. A comment `<!-- SIGTERM after: TEXT -->`
before a block ends the program so, once it has printed TEXT. `<!-- against a chat server -->` gives it one on loopback, in
place of a provider's.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

import executus.actors
import executus.actors.agents
import executus.actors.testing
import executus.stores
from executus.actors import (
    FOREVER,
    Backoff,
    Keep,
    RestartPolicy,
    RetentionPolicy,
    Run,
    RunHandle,
    RunStatus,
    Runtime,
    SavePolicy,
    StopPolicy,
    events,
)
from executus.actors.agents import Agent, Budget, Ladder, LadderCritic, Limits, Shortening, Skill, Tier
from executus.actors.agents.engine import MAX_RATE_LIMIT_WAITS
from executus.actors.agents.tool import EFFECTS
from executus.actors.core import DRAIN_S
from executus.actors.definition import MAX_VALUE_BYTES
from executus.actors.outcomes import Crashed, ErrorInfo, Phase
from executus.actors.policies import DEFAULT_EVERY_S, MAX_STRIKES, Restart, RestartHistory, decide
from executus.actors.retention import PRUNED
from executus.actors.worker_pool import WorkerPool
from executus.stores import REMEMBERED_IDS
from executus.stores.lmdb_store import REFUSE_NEW_RUNS_RATIO
from tests.agents.chat_server import ChatServer, completion
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HANG_S = 60.0
PYTEST = [
    "-q",
    "--no-header",
    "--no-summary",
    "-p",
    "no:randomly",
    "-p",
    "no:cacheprovider",
    "--rootdir",
    ".",
    "-c",
    "/dev/null",
]

FENCE = re.compile(
    r"(?:^<!-- (?:SIGTERM after: (?P<cue>.+?)|(?P<server>against a chat server)) -->\n)?^```(?P<kind>\w*)(?: (?P<name>\S+))?\n(?P<text>.*?)^```\n",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block; `line` is that of its fence in the README."""

    kind: str
    name: str | None
    text: str
    line: int
    cue: str | None
    server: bool
    shown: str | None

    def __str__(self) -> str:
        return self.name or f"line-{self.line}"


def blocks() -> list[Block]:
    found = list(FENCE.finditer(README))
    behind = {m.start(): m for m in found}
    result: list[Block] = []
    for match in found:
        follower = behind.get(match.end() + 1)
        shown = follower["text"] if follower is not None and follower["kind"] == "text" else None
        line = README.count("\n", 0, match.start("kind")) + 1
        result.append(
            Block(match["kind"], match["name"], match["text"], line, match["cue"], bool(match["server"]), shown)
        )
    return result


BLOCKS = blocks()
PROGRAMS = [block for block in BLOCKS if block.kind == "python"]


def expected_output(block: Block) -> str:
    """What the block shows: the text behind it, or its `# ->` comments in order."""
    if block.shown is not None:
        return block.shown
    return "".join(f"{line}\n" for line in re.findall(r"# -> (.*)$", block.text, re.MULTILINE))


def is_a_test(block: Block) -> bool:
    """Whether pytest runs it."""
    return (block.name or "").startswith("test_")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a block runs: every named block before it as a file, a folder of three books, and an inbox with one folder."""
    for block in PROGRAMS:
        if block.name is not None:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
    for parent in (tmp_path / "books", tmp_path / "inbox" / "monday"):
        parent.mkdir(parents=True)
        for number in (1, 2, 3):
            (parent / f"{number}.txt").write_text("call me ishmael\n" * 10 * number, encoding="utf-8")
    return tmp_path


def catches_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, or has ended; yes where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is None or "State:\tZ" in status or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def run_program(block: Block, folder: Path, **environment: str) -> tuple[int, str, str]:
    """Run it in `folder` to its end; with a cue, SIGTERM it when that was printed. Exit code, stdout, stderr."""
    file = folder / (block.name or "program.py")
    file.write_text(block.text, encoding="utf-8")
    # -P: the clone's own folders must not be importable by chance; the examples' folder is put there on purpose.
    code = f"import sys, runpy; sys.path.insert(0, {str(folder)!r}); runpy.run_path({str(file)!r}, run_name='__main__')"
    # Starlette's test client wants a successor of httpx that FastAPI's own documentation does not name yet.
    warnings = ["-W", "error", "-W", "ignore:Using `httpx` with"]
    if is_a_test(block):
        code = (
            f"import sys, pytest; sys.path.insert(0, {str(folder)!r}); sys.exit(pytest.main({[*PYTEST, str(file)]!r}))"
        )
    command = [sys.executable, "-P", "-X", "dev", *warnings, "-c", code]
    pipe = subprocess.PIPE
    environment = {**os.environ, **environment}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        watchdog = threading.Timer(HANG_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            printed = ""
            while block.cue is not None and block.cue not in printed:
                line = process.stdout.readline()
                if not line:
                    break
                printed += line
            if block.cue is not None:
                wait_until(lambda: catches_sigterm(process.pid), HANG_S)
                process.send_signal(signal.SIGTERM)
            rest, errors = process.communicate()
        finally:
            watchdog.cancel()
            watchdog.join()
    return process.returncode, printed + rest, errors


def test_the_readme_has_python_blocks() -> None:
    assert len(PROGRAMS) > 12
    assert {block.kind for block in BLOCKS} <= {"python", "text", "sh"}, "a block of a kind that nothing checks"
    assert README.count("\n```") == 2 * len(BLOCKS), "a fence that the pattern did not find"


@pytest.mark.parametrize("block", [block for block in PROGRAMS if not block.server], ids=str)
def test_a_block_runs_and_prints_what_it_shows(block: Block, folder: Path) -> None:
    code, output, errors = run_program(block, folder)
    assert code == 0, f"README.md line {block.line}:\n{output}{errors}"
    if is_a_test(block):
        return  # pytest has said that its asserts hold
    assert output == expected_output(block), f"README.md line {block.line}\n{errors}"


@pytest.mark.parametrize("block", [block for block in PROGRAMS if block.server], ids=str)
def test_a_block_asks_its_provider(block: Block, folder: Path) -> None:
    pytest.importorskip("pydantic_ai")
    assert '"openai:' in block.text
    chat = block._replace(text=block.text.replace('"openai:', '"openai-chat:'))  # its older API: what the server speaks
    server = ChatServer()
    with server.running():
        server.will(
            completion(calls=[("1", "read", '{"file": "2.txt"}')]),
            completion(calls=[("2", "mail", '{"to": "ada", "text": "As book 1."}')]),
            completion("As book 1."),
        )
        code, output, errors = run_program(chat, folder, OPENAI_BASE_URL=server.url, OPENAI_API_KEY="a-key")
    assert code == 0, errors
    assert output == "As book 1. (completed, 54 tokens, $0.0000)\n"
    assert (folder / "sent.txt").read_text() == "ada: As book 1.\n"
    assert {asked["model"] for asked in server.asked} == {"gpt-5-mini"}
    assert "call me ishmael" in server.asked[1]["messages"][-1]["content"]


# --- names ------------------------------------------------------------------------------------------------------------

INLINE = re.compile(r"`([^`\n]+)`")
PROSE = FENCE.sub("", README)

PEOPLES_WORDS = {
    "SystemExit",
    "KeyboardInterrupt",
    "CancelledError",
    "MemoryError",
    "BaseException",
    "TimeoutError",
    "None",
    "True",
    "False",
    "TestClient",
}
"""Python's and other people's."""

THE_EXAMPLES_OWN = {"Approve", "Crawl", "Publish", "SendMailsOnce"}


def known_names() -> set[str]:
    modules = (executus.actors, executus.actors.agents, executus.actors.testing, executus.stores, events)
    return {"PydanticModel"} | {name for module in modules for name in vars(module) if not name.startswith("_")}


def test_every_class_that_the_readme_names_exists() -> None:
    named = {word for code in INLINE.findall(PROSE) for word in re.findall(r"(?<![\w.])[A-Z][a-z]+[A-Za-z]+\b", code)}
    assert len(named) > 40
    assert named - known_names() - PEOPLES_WORDS - THE_EXAMPLES_OWN == set()


@pytest.mark.parametrize(
    ("prefix", "owner"),
    [("runtime", Runtime), ("run", RunHandle), ("self.context", executus.actors.RunContext)],
)
def test_every_method_that_the_readme_names_exists(prefix: str, owner: type) -> None:
    text = "\n".join([*INLINE.findall(PROSE), *(block.text for block in PROGRAMS)])
    named = set(re.findall(rf"(?<![\w.]){re.escape(prefix)}\.([a-z_]+)", text))
    assert named
    assert {name for name in named if not hasattr(owner, name)} == set()


def test_what_is_not_there_yet_is_not_there() -> None:
    assert not hasattr(Runtime, "sweep")
    assert not hasattr(RunHandle, "sweep")


# --- tables -----------------------------------------------------------------------------------------------------------


def rows(pattern: str) -> dict[str, str]:
    """The rows of tables whose first cell fits, by that cell; the value is the second cell."""
    return {m[1]: m[2] for m in re.finditer(rf"^\| ({pattern}) \| (.*?) \|", README, re.MULTILINE)}


def test_the_defaults_of_the_policies_are_those_of_the_code() -> None:
    policies = (RestartPolicy, Backoff, SavePolicy, StopPolicy)
    shown = {name.strip("`"): value.strip("`") for name, value in rows(r"`\w+(?:Policy\.|off\.)\w+`").items()}
    fields = {f"{p.__name__}.{f.name}": f.default for p in policies for f in msgspec.structs.fields(p)}
    assert shown.keys() == fields.keys()
    names = {policy.__name__: policy for policy in policies}
    assert {name: eval(value, names) for name, value in shown.items()} == fields
    assert f"`None` is {DEFAULT_EVERY_S}" in README


def test_the_defaults_of_agents_are_those_of_the_code() -> None:
    kinds = (Limits, Budget, Ladder, LadderCritic, Shortening, Tier, Agent, Skill)
    names = "|".join(kind.__name__ for kind in kinds)
    shown = {name.strip("`"): eval(value.strip("`")) for name, value in rows(rf"`(?:{names})\.\w+`").items()}
    fields = {f"{kind.__name__}.{f.name}": f.default for kind in kinds for f in msgspec.structs.fields(kind)}
    assert {name: fields.get(name) for name in shown} == shown
    assert shown.items() >= {(name, value) for name, value in fields.items() if name.endswith(".step_ceiling")}
    whole = tuple(f"{kind.__name__}." for kind in (Limits, Budget, Ladder, Shortening))
    assert {name for name in fields if name.startswith(whole)} <= shown.keys()
    house = inspect.signature(executus.actors.agents.Agents).parameters
    assert {name for name in ("critic", "audit", "compactor", "durability") if f"{name}=" in README} <= house.keys()
    agents = executus.actors.agents.Agents([], models={})
    assert {type(agents.ports.critic).__name__, type(agents.ports.audit).__name__, type(agents.ports.compactor).__name__} == {
        "LadderCritic", "LogAudit", "Shortening",
    }  # fmt: skip
    assert f"up to {MAX_RATE_LIMIT_WAITS} times" in README
    assert '`"unsafe"` unless told otherwise' in README
    assert inspect.signature(executus.actors.agents.Tool.of).parameters["effect"].default == "unsafe"


def test_the_table_of_what_is_repeated_has_a_column_for_every_effect() -> None:
    (heads,) = re.findall(r"^\| the process dies \|.*$", README, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", heads)) == set(EFFECTS)


def test_how_long_runs_are_kept_is_as_in_the_code() -> None:
    policy, day_s = RetentionPolicy(), 86_400
    found = re.findall(r"^\| (`[a-z_`, ]+`)\S* \| (\d+) days \| ([\d,]+)(?: each)? \|", README, re.MULTILINE)
    shown = {
        name: Keep(int(days) * day_s, int(number.replace(",", "")))
        for names, days, number in found
        for name in re.findall(r"\w+", names)
    }
    assert shown == {status.value: policy.keep(status) for status in PRUNED if policy.keep(status) != FOREVER}
    assert f"`max_per_sweep` ({policy.max_per_sweep})" in README


def test_the_table_of_endings_names_every_status_and_no_other() -> None:
    (table,) = re.findall(r"^\| what happened \| status \|.*?\n\n", README, re.MULTILINE | re.DOTALL)
    statuses = {re.split(r"(?<!\\) \| ", line)[1].strip("`") for line in table.strip().splitlines()[2:]}
    assert statuses == {status.value for status in RunStatus}
    assert MAX_STRIKES == 3, "the tables say three boots"


def test_the_limits_are_those_of_the_code() -> None:
    limits = rows("[a-z][^|]*?")
    assert str(executus.stores.MAX_RUN_ID_BYTES) in limits["run id"]
    assert limits["labels of a run"] == str(executus.stores.MAX_LABELS)
    assert limits["input, state, result, each"] == "16 MiB, less 64 KiB for the record around it"
    assert MAX_VALUE_BYTES == (16 * 1024 - 64) * 1024
    assert limits["messages waiting at a run"] == f"{Run.mailbox_limit} (`mailbox_limit`)"
    assert limits["durable messages unconsumed by a run"] == f"{Run.inbox_limit:,} (`inbox_limit`)"
    assert f"at least the {REMEMBERED_IDS:,} messages" in README
    threads = inspect.signature(WorkerPool).parameters["max_threads"].default
    assert limits["worker threads for sync callbacks"].startswith(str(threads))
    size = inspect.signature(executus.stores.LmdbStore).parameters["map_size_bytes"].default
    assert limits["growth of a store"].startswith(f"{size >> 30} GiB")
    assert f"from {REFUSE_NEW_RUNS_RATIO:.0%}".replace("%", " %") in limits["growth of a store"]
    assert limits["drain when the `with` block ends"].startswith(f"{DRAIN_S:g} s")


def test_the_budget_of_the_nightly_service_is_never_spent(folder: Path) -> None:
    scope: dict[str, Any] = {"__name__": "nightly"}
    exec((folder / "nightly.py").read_text(encoding="utf-8"), scope)
    policy: RestartPolicy = scope["Nightly"].restart_policy
    now_s, history = 0.0, RestartHistory()
    for _ in range(2_000):
        decision = decide(Crashed(ErrorInfo("OSError", "no database"), Phase.STEP), policy, history, now_s)
        assert isinstance(decision, Restart)
        history = history.restarted(policy, now_s)
        now_s += policy.backoff.delay_s(decision.restarts, roll=0.0)  # the shortest delays spend it soonest


# --- commands ---------------------------------------------------------------------------------------------------------

SHELL = [line for block in BLOCKS if block.kind == "sh" for line in block.text.splitlines()]


def executus_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "executus.actors.console.main", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False, timeout=HANG_S
    )


def test_the_two_commands_stand_in_a_code_block() -> None:
    assert "pip install '.[cli]' && executus demo" in SHELL
    assert "pip install '.[test]' && pytest" in SHELL


def test_every_shell_command_is_one_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in SHELL:
        for command in line.split(" && "):
            program, *arguments = shlex.split(command)
            match program:
                case "pip":
                    (extra,) = re.findall(r"\.\[(\w+)\]", command)
                    assert extra in project["optional-dependencies"]
                case ".ci/run":
                    assert (ROOT / program).exists()
                case "executus":
                    assert arguments[0] in {"backup", "compact", "demo", "doctor", "gc", "ps", "restore", "show", "why"}
                case _:
                    assert program in {"pytest", "ruff", "mypy", "lint-imports"}, command


def test_the_console_reads_the_store_of_the_approval_example_as_shown(folder: Path) -> None:
    file = folder / "approval.py"
    stopped_midway = file.read_text(encoding="utf-8").split("    # … a deploy")[0]
    (block,) = (block for block in PROGRAMS if block.name == "approval.py")
    saved = """
        import time
        while not runtime.get("post-1").status().durable_seq: time.sleep(0.01)
"""
    code, _, errors = run_program(block._replace(text=stopped_midway.rstrip() + saved), folder)
    assert code == 0, errors
    for line in SHELL:
        if line.startswith(("executus ps", "executus show", "executus doctor")):
            shown = executus_command(*shlex.split(line)[1:], cwd=folder)
            assert shown.returncode == 0, shown.stderr
            assert "post-1" in shown.stdout
    options = [
        "ps approvals.store --status failed",
        "ps approvals.store --type Publish --json",
        "show approvals.store post-1 --raw",
        "doctor approvals.store --limit 100 --json",
    ]
    assert [executus_command(*line.split(), cwd=folder).returncode for line in options] == [0, 0, 0, 0]
    assert executus_command("show", "approvals.store", "post-2", cwd=folder).returncode == 4
    assert executus_command("ps", "elsewhere.store", cwd=folder).returncode == 3
    assert executus_command("frobnicate", cwd=folder).returncode == 2


def test_the_demo_prints_the_rows_that_are_shown(folder: Path) -> None:
    row = re.compile(r"^([a-z][a-z ()A-Z]*?)  +\S", re.MULTILINE)
    (shown,) = (row.findall(block.text) for block in BLOCKS if block.kind == "text" and "snapshots lost" in block.text)
    demo = executus_command("demo", "books", "--runs", "2", "--kills", "0", cwd=folder)
    assert demo.returncode == 0, demo.stderr
    assert row.findall(demo.stdout) == shown
    assert len(shown) > 6


def test_the_demo_of_agents_prints_the_rows_and_marks_that_are_shown(folder: Path) -> None:
    row, mark = re.compile(r"^([a-z][a-z ()A-Z]*?)  +\S", re.MULTILINE), re.compile(r"  <- (.*)$", re.MULTILINE)
    (shown,) = (block.text for block in BLOCKS if block.kind == "text" and "replies lost" in block.text)
    demo = executus_command("demo", "agent", "books", "--text", "ishmael", cwd=folder)
    assert demo.returncode == 0, demo.stderr
    assert mark.findall(demo.stdout) == mark.findall(shown)
    table, shown_table = (text[text.index("\nkills (SIGKILL)") :] for text in (demo.stdout, shown))
    assert row.findall(table) == row.findall(shown_table)
    assert len(row.findall(table)) > 10


def test_the_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) - anchors == set()
