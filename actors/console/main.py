"""The command `executus`: what it takes, and which command it hands that to.

Exit codes: 0 ok; 1 what was asked for failed, an invariant is broken, or something needs a person; 2 usage; 3 the store
cannot be read (locked, damaged, missing); 4 not found; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from executus.actors.console.copies import exit_code_of_copy, print_copy
from executus.actors.console.demo import demo
from executus.actors.console.demo_agent import demo_agent, print_agents
from executus.actors.console.demo_agent_check import AgentSummary
from executus.actors.console.demo_check import Summary
from executus.actors.console.doctor import doctor, print_examination
from executus.actors.console.failures import CommandFailed, ExitCode, complain
from executus.actors.console.gc import gc, policy_of, print_collection
from executus.actors.console.ps import print_listing, ps
from executus.actors.console.screen import Screen, screen_for
from executus.actors.console.show import print_raw, print_shown, show
from executus.actors.console.values import print_json
from executus.actors.console.why import print_why, why
from executus.stores import CopyReport, ExecutusError, RunStatus, backup, compact, restore

MOST_PROBLEMS: Final = 10
"""So many are printed for people."""
DEMO_AGENT: Final = "demo agent"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser().parse_args(_with_topic(given))
        command: Callable[[argparse.Namespace], ExitCode] = arguments.command
        return command(arguments)
    except ExecutusError as error:
        return complain(error, as_json="--json" in given)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does; what Python still holds for it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def _with_topic(given: Sequence[str]) -> Sequence[str]:
    """With `demo agent` as one command; a folder of that name is `./agent`."""
    return [DEMO_AGENT, *given[2:]] if list(given[:2]) == DEMO_AGENT.split() else given


class _Parser(argparse.ArgumentParser):
    """As argparse's, with usage errors that come out like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exit."""
        raise CommandFailed(ExitCode.USAGE, f"{message}. To see what it takes: {self.prog} --help")


def _demo(arguments: argparse.Namespace) -> ExitCode:
    screen = screen_for(as_json=arguments.json)
    summary = demo(arguments.folder, runs=arguments.runs, kills=arguments.kills, keep=arguments.keep, screen=screen)
    if arguments.json:
        print_json(summary)
    rows = [
        ("runs", str(summary.runs)),
        ("kills (SIGKILL)", str(summary.kills)),
        ("steps", str(summary.steps)),
        ("steps kept", str(summary.steps_kept)),
        ("steps repeated", str(summary.steps_repeated)),
        ("snapshots lost", str(summary.snapshots_lost)),
        ("time to recover", f"{summary.recovery_s:.2f} s (the slowest)" if summary.kills else "-"),
        ("results that differ", f"{summary.results_wrong} of {summary.runs}"),
        ("time altogether", f"{summary.seconds:.1f} s"),
    ]
    screen.table((), rows)
    return _judged(summary, screen)


def _demo_agent(arguments: argparse.Namespace) -> ExitCode:
    screen = screen_for(as_json=arguments.json)
    summary = demo_agent(arguments.folder, arguments.text, keep=arguments.keep, screen=screen)
    if arguments.json:
        print_json(summary)
    print_agents(summary, screen)
    return _judged(summary, screen)


def _judged(summary: Summary | AgentSummary, screen: Screen) -> ExitCode:
    """Say what is broken, and where the store is."""
    for problem in summary.problems[:MOST_PROBLEMS]:
        screen.say(f"broken: {problem}")
    if len(summary.problems) > MOST_PROBLEMS:
        screen.say(f"broken: {len(summary.problems) - MOST_PROBLEMS} more; --json has all")
    if summary.store is not None:
        screen.say(f"the store is kept; look at it with: executus ps {summary.store}")
    return ExitCode.OK if summary.ok else ExitCode.FAILED


def _ps(arguments: argparse.Namespace) -> ExitCode:
    status = None if arguments.status is None else RunStatus(arguments.status)
    listing = ps(arguments.store, status=status, run_type=arguments.type)
    if arguments.json:
        print_json(listing)
    else:
        print_listing(listing, screen_for(as_json=False))
    return ExitCode.OK


def _show(arguments: argparse.Namespace) -> ExitCode:
    if arguments.raw and arguments.json:
        raise CommandFailed(ExitCode.USAGE, "--raw prints bytes, --json prints JSON: choose one.")
    if arguments.raw:
        print_raw(arguments.store, arguments.run)
        return ExitCode.OK
    shown = show(arguments.store, arguments.run)
    if arguments.json:
        print_json(shown)
    else:
        print_shown(shown, screen_for(as_json=False))
    return ExitCode.OK


def _why(arguments: argparse.Namespace) -> ExitCode:
    found = why(arguments.store, arguments.run)
    if arguments.json:
        print_json(found)
    else:
        print_why(found, screen_for(as_json=False))
    return ExitCode.OK


def _doctor(arguments: argparse.Namespace) -> ExitCode:
    screen = screen_for(as_json=arguments.json)
    found = doctor(arguments.store, limit=arguments.limit, screen=screen, runs=arguments.runs)
    if arguments.json:
        print_json(found)
    else:
        print_examination(found, screen)
    return found.exit_code


def _gc(arguments: argparse.Namespace) -> ExitCode:
    found = gc(arguments.store, policy=policy_of(arguments.keep), apply=arguments.apply)
    if arguments.json:
        print_json(found)
    else:
        print_collection(found, screen_for(as_json=False), MOST_PROBLEMS)
    return ExitCode.OK


def _backup(arguments: argparse.Namespace) -> ExitCode:
    return _copied(backup(arguments.store, arguments.to, force=arguments.force), arguments, "backed up to")


def _restore(arguments: argparse.Namespace) -> ExitCode:
    return _copied(restore(arguments.backup, arguments.store, force=arguments.force), arguments, "restored as")


def _compact(arguments: argparse.Namespace) -> ExitCode:
    return _copied(compact(arguments.store), arguments, "compacted")


def _copied(report: CopyReport, arguments: argparse.Namespace, verb: str) -> ExitCode:
    if arguments.json:
        print_json(report)
    else:
        print_copy(report, screen_for(as_json=False), verb=verb)
    return exit_code_of_copy(report)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="executus", description="Durable, supervised runs: watch them survive, look at what is stored."
    )
    parser.add_argument("--version", action="version", version=f"executus {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")

    _add_demos(commands, common)

    one = commands.add_parser("ps", parents=[common], help="list the runs of a store, whether its daemon lives or not")
    one.add_argument("store", type=Path, help="the folder that the runtime was given")
    one.add_argument(
        "--status", choices=[status.value for status in RunStatus], metavar="STATUS", help="only these: %(choices)s"
    )
    one.add_argument("--type", metavar="TYPE", help="only runs of this type")
    one.set_defaults(command=_ps)

    one = commands.add_parser("show", parents=[common], help="show everything that a store holds of one run")
    one.add_argument("store", type=Path, help="the folder that the runtime was given")
    one.add_argument("run", help="its id")
    one.add_argument("--raw", action="store_true", help="print the bytes of its state and nothing else")
    one.set_defaults(command=_show)

    one = commands.add_parser(
        "why",
        parents=[common],
        help="say how a run came to stand where it stands: its ending, attempts, errors, events",
    )
    one.add_argument("store", type=Path, help="the folder that the runtime was given")
    one.add_argument("run", help="its id")
    one.set_defaults(command=_why)

    one = commands.add_parser(
        "doctor", parents=[common], help="look at all of a store: what is wrong with it, and what to do"
    )
    one.add_argument("store", type=Path, help="the folder that the runtime was given")
    one.add_argument(
        "--limit",
        type=_number(0, 1_000_000),
        default=10,
        metavar="N",
        help="name at most N runs of a kind (default: 10)",
    )
    one.add_argument(
        "--runs", metavar="MODULE:NAME", help="import your list of run types: what would they make of each live run?"
    )
    one.set_defaults(command=_doctor)

    one = commands.add_parser(
        "gc", parents=[common], help="say which ended runs are kept no longer; with --apply delete them"
    )
    one.add_argument("store", type=Path, help="the folder that the runtime was given")
    one.add_argument("--apply", action="store_true", help="delete them; no daemon may own the store")
    one.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="ENDING=AGE/NUMBER",
        help="for instance completed=7d/10000, failed=30d, killed=/100, cancelled=forever (default: the runtime's)",
    )
    one.set_defaults(command=_gc)

    one = commands.add_parser(
        "backup", parents=[common], help="copy a store while its daemon writes it, and read the copy to its end"
    )
    one.add_argument("store", type=Path, help="the folder that the runtime was given")
    one.add_argument("to", type=Path, help="the folder to make")
    one.add_argument("--force", action="store_true", help="replace a backup that is there")
    one.set_defaults(command=_backup)

    one = commands.add_parser("restore", parents=[common], help="make a store of a backup")
    one.add_argument("backup", type=Path, help="the backup, which stays as it is")
    one.add_argument("store", type=Path, help="the folder to make, for the runtime to be given")
    one.add_argument("--force", action="store_true", help="move a store that is there aside; no daemon may own it")
    one.set_defaults(command=_restore)

    one = commands.add_parser(
        "compact", parents=[common], help="give back the room in a store's file; no daemon may own it"
    )
    one.add_argument("store", type=Path, help="the folder that the runtime was given")
    one.set_defaults(command=_compact)
    return parser


def _add_demos(commands: argparse._SubParsersAction[_Parser], common: _Parser) -> None:
    one = commands.add_parser(
        "demo", parents=[common], help="kill a daemon full of runs with SIGKILL and watch it finish"
    )
    one.add_argument(
        "folder", type=Path, nargs="?", help="read its text files (default: the standard library's sources)"
    )
    one.add_argument("--runs", type=_number(1, 1000), default=100, metavar="N", help="how many runs (default: 100)")
    one.add_argument("--kills", type=_number(0, 20), default=2, metavar="N", help="how many kills (default: 2)")
    one.add_argument("--keep", action="store_true", help="keep the store, and say where it is")
    one.set_defaults(command=_demo)

    one = commands.add_parser(
        DEMO_AGENT, parents=[common], help="kill an agent with SIGKILL in mid-sentence and watch it finish"
    )
    one.add_argument(
        "folder", type=Path, nargs="?", help="let it read these text files (default: the standard library's sources)"
    )
    one.add_argument("--text", type=_text, default="TODO", help="what it looks for (default: TODO)")
    one.add_argument("--keep", action="store_true", help="keep the store, and say where it is")
    one.set_defaults(command=_demo_agent)


def _version() -> str:
    try:
        return importlib.metadata.version("executus")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version: its folders are on the path, it is not installed"


def _text(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no text to look for")
    return text


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not from {least} to {most}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
