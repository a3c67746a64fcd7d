"""`executus doctor STORE --runs module:RUNS`: what the next boot of that code would make of each live run.

It is asked of the code that a boot asks, over a store that is only read. No callback is called but `upgrade` and
`resuming`, on an instance that is made for them alone.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from executus.actors.boot import Resume, SetAsideAs, plan
from executus.actors.console.screen import Screen
from executus.actors.console.user_code import load_runs
from executus.actors.definition import Registry, RunDefinition, decode_next
from executus.actors.errors import MessageUnreadable
from executus.actors.outcomes import safe_text
from executus.actors.run import Beginning
from executus.actors.state_codec import plain_state
from executus.actors.stored_runs import boot_facts
from executus.stores import (
    EndedRun,
    LmdbReader,
    LoadedSnapshot,
    RecordCorrupt,
    RunRecord,
    RunStatus,
    StoredRun,
    StoreError,
    StoreTooNew,
)


class Verdict(enum.StrEnum):
    """What the next boot does with a run. Stable: scripts depend on these words."""

    RESUMABLE = "resumable"
    UPGRADABLE = "upgradable"
    """`upgrade` brings its state forward."""
    PARKED = "parked"
    """This code cannot take it up. It is left as it is, and tried again at each boot."""
    QUARANTINED = "quarantined"
    """It cannot be read, or has taken the process down three times."""
    FAILING = "failing"
    """It has no state yet, and its input does not fit: it would crash until its restarts are spent."""


class Prospect(msgspec.Struct, frozen=True):
    """One live run under the code given. `run_type` is None where its record cannot be read."""

    run_id: str
    run_type: str | None
    verdict: Verdict
    why: str


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """All live runs under the code given: how many of each verdict, and the first ones that are not just resumable."""

    runs: str
    types: list[str]
    counts: dict[Verdict, int]
    first: list[Prospect]

    @property
    def ok(self) -> bool:
        """Whether every live run would go on."""
        return not any(self.counts.get(verdict) for verdict in Verdict if verdict not in _FINE)


_FINE: Final = frozenset({Verdict.RESUMABLE, Verdict.UPGRADABLE})


@dataclass(frozen=True)
class _Sources:
    registry: Registry
    store: LmdbReader


def deployment(store: Path, name: str, *, limit: int) -> Deployment:
    """Judge every live and every passivated run by that code. Raises CommandFailed, StoreError."""
    registry = load_runs(name)
    reader = LmdbReader(store)
    reader.open()
    try:
        sources, counts, first = _Sources(registry, reader), dict[Verdict, int](), list[Prospect]()
        for run_id in (*(claim.run_id for claim in reader.live()), *_passivated(reader)):
            stored = reader.load(run_id)
            if stored is None:
                continue  # its daemon has deleted it meanwhile
            verdict, why = _judge(sources, stored)
            counts[verdict] = counts.get(verdict, 0) + 1
            if verdict is not Verdict.RESUMABLE and len(first) < limit:
                run_type = None if stored.record is None else stored.record.run_type
                first.append(Prospect(run_id, run_type, verdict, why))
        for run_id in reader.damaged():
            counts[Verdict.QUARANTINED] = counts.get(Verdict.QUARANTINED, 0) + 1
            if len(first) < limit:
                first.append(Prospect(run_id, None, Verdict.QUARANTINED, "its claim cannot be read"))
        return Deployment(
            runs=name,
            types=sorted(definition.name for definition in registry),
            counts={verdict: counts[verdict] for verdict in Verdict if verdict in counts},
            first=first,
        )
    finally:
        reader.close()


def print_deployment(found: Deployment, screen: Screen) -> None:
    """For people."""
    counted = ", ".join(f"{count} {verdict}" for verdict, count in found.counts.items()) or "no live run"
    screen.say(f"with {found.runs} ({', '.join(found.types)}): {counted}")
    for prospect in found.first:
        screen.say(f"    {prospect.run_id} ({prospect.run_type or '?'}): {prospect.verdict}: {prospect.why}")
    more = sum(found.counts.values()) - found.counts.get(Verdict.RESUMABLE, 0) - len(found.first)
    if more > 0:
        screen.say(f"    and {more} more")
    screen.say(
        "every live run would go on" if found.ok else "    -> Deploy code that takes these up, or end them first."
    )


def _passivated(reader: LmdbReader) -> Iterator[str]:
    """They are not loaded at a boot, and will be by the same code."""
    after: EndedRun | None = None
    while page := reader.ended(RunStatus.PASSIVATED, after=after):
        yield from (run.run_id for run in page)
        after = page[-1]


def _judge(sources: _Sources, stored: StoredRun) -> tuple[Verdict, str]:
    """What a boot would do, then what the attempt that it starts would find."""
    match plan(boot_facts(sources, stored)):
        case SetAsideAs(RunStatus.PARKED, reason):
            return Verdict.PARKED, reason
        case SetAsideAs(_, reason):
            return Verdict.QUARANTINED, reason
        case Resume():
            record = stored.record
            assert record is not None  # a run without one is quarantined
            definition = sources.registry.named(record.run_type)
            assert definition is not None  # a run of an unknown type is parked
            return _judge_state(sources.store, record, definition)


def _judge_state(store: LmdbReader, record: RunRecord, definition: RunDefinition) -> tuple[Verdict, str]:
    verdict, why = Verdict.RESUMABLE, ""
    try:
        loaded = store.load_snapshot(record.run_id)
        if loaded is None or isinstance(decode_next(loaded.snapshot.next), Beginning):
            try:
                definition.decode_input(record.input)
            except Exception as error:  # noqa: BLE001 - as the boundary of a run
                return Verdict.FAILING, f"it begins from its input, which does not fit: {safe_text(error)}"
        else:
            verdict, why = _judge_loaded(loaded, definition)
        for message in store.messages(record.run_id):
            if message.message is not None:
                definition.decode_message(message.message.body, message.message.message_id)
    except RecordCorrupt as error:
        return Verdict.QUARANTINED, str(error)
    except (MessageUnreadable, StoreTooNew) as error:
        return Verdict.PARKED, str(error)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever `upgrade` raises parks the run
        what = f"{type(error).__name__}: {safe_text(error)}"
        return Verdict.PARKED, f"the stored state cannot be read by this code: {what}"
    return verdict, why


def _judge_loaded(loaded: LoadedSnapshot, definition: RunDefinition) -> tuple[Verdict, str]:
    """As an attempt loads it. Raises what reading its state and `upgrade` raise."""
    version = loaded.snapshot.schema_version
    if version == definition.schema_version:
        verdict, why = Verdict.RESUMABLE, ""
        state, _ = definition.states.load(loaded)
        if not definition.looks_at_stored:
            return verdict, why
        run = definition.make()
    else:
        verdict, why = Verdict.UPGRADABLE, f"from schema {version} to {definition.schema_version}"
        run = definition.make()
        state = run.upgrade(version, plain_state(loaded))
        definition.check_state(state, "upgrade")
        definition.states.encode(state)
    try:
        definition.look_at_stored(run, state)
    except Exception as error:  # noqa: BLE001 - whatever `resuming` raises parks the run
        what = f"{type(error).__name__}: {safe_text(error)}"
        return Verdict.PARKED, f"this code cannot go on with the stored state: {what}"
    return verdict, why
