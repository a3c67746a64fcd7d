"""What do hostile records do? A typed error, in bounded memory and depth; nothing is imported and nothing runs.

Records are made of valid ones (mutated, cut, joined) and of nothing (bombs, lies about sizes, strange types); most are
sealed with checksums that hold, as by somebody who may write the file. Each goes through the codec of the stores, and
what is in it through the decoders of the actors. An audit hook is the canary: it sees every import, every compiled or
executed piece of code, every opened file, socket or process. All of it under RLIMIT_AS.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import enum
import mmap
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from executus.actors import Blob, Done, Journal, ResultUnreadable, Run
from executus.actors.blob import encoded_blob
from executus.actors.definition import RunDefinition, decode_next, encode_next
from executus.actors.errors import MessageUnreadable, OptionsUnreadable
from executus.actors.flight import VERSION, AttemptExit, FlightEvent, FlightRecord, decode_flight, encode_flight
from executus.actors.outcomes import UNDECODABLE, Completed, ErrorInfo, Failed, Phase, encode_outcome, safe_text
from executus.actors.policies import Policies
from executus.actors.run import Beginning, Stepping, Waiting
from executus.actors.state_codec import StateCodec, plain_state
from executus.actors.stored_runs import incarnation_of_record, stored_outcome
from executus.stores import RecordCorrupt, RecordTooLarge, RunStatus, StoreTooNew, codec, owner_lock
from executus.stores.records import (
    MAX_RECORD_BYTES,
    Base,
    Chunk,
    Inbox,
    LoadedSnapshot,
    Message,
    ParentLink,
    Piece,
    Token,
)
from tests.harness import hostile_boot
from tests.harness.forks import forked
from tests.harness.report import Report
from tests.stores.making import claim, record, snapshot

KEY = b"run"
FLOWN = encode_flight(
    FlightRecord(
        version=VERSION,
        incarnation=1,
        attempt=2,
        epoch=3,
        at_s=4.0,
        status="failed",
        exits=(AttemptExit(attempt=1, epoch=1, at_s=1.0, how="crashed", seq=2, error="ValueError: told to"),),
        events=(FlightEvent(1.0, "RunExited", "seq=2"),),
    )
)
ROOM_BYTES = 512 * 1024**2
"""Of address space beyond what the process has when it begins: far less than what a bomb would like."""
CHUNK = 1000
BOOT_EVERY = 2000
BIG_EVERY = 100
"""One record in so many is as large as a record may be, or larger."""
CANARY = Path(tempfile.gettempdir()) / f"executus-canary-{os.getpid()}"
"""Is there once a pickle was loaded."""
SEEN = frozenset({"import", "exec", "compile", "open", "socket.connect", "subprocess.Popen", "os.system", "os.exec"})
PREFIXES = ("pickle.", "marshal.", "ctypes.", "os.", "shutil.")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(msgspec.Struct, frozen=True, tag=True):
    value: float
    at: dt.datetime | None = None


class Tree(msgspec.Struct, frozen=True, tag=True):
    kids: tuple[Tree | Leaf, ...] = ()


class Bag(msgspec.Struct, frozen=True):
    """A state of everything that msgspec can store."""

    tree: Tree | Leaf
    names: dict[str, tuple[int, ...]] = {}
    ids: frozenset[uuid.UUID] = frozenset()
    price: decimal.Decimal = decimal.Decimal(0)
    colour: Colour = Colour.RED
    took: dt.timedelta = dt.timedelta(0)
    blob: bytes = b""
    anything: Any = None
    maps: list[dict[str, int]] = []


class Ask(msgspec.Struct, frozen=True, tag=True):
    what: str


class Give(msgspec.Struct, frozen=True, tag=True):
    bag: Bag


class Hostage(Run[Bag, Bag, Bag]):
    """Its input, state, result and messages are what is decoded here."""

    def begin(self, bag: Bag) -> Bag:
        return bag

    def step(self, state: Bag) -> Any:
        return Done(state)

    def receive(self, state: Bag, message: Ask | Give) -> Any:
        return None


BAG = Bag(
    tree=Tree((Leaf(1.5, dt.datetime(2024, 1, 2, tzinfo=dt.UTC)), Tree((Tree(), Leaf(-0.0))))),
    names={"a": (1, 2, 3), "b": ()},
    ids=frozenset({uuid.UUID(int=7)}),
    price=decimal.Decimal("1.50"),
    took=dt.timedelta(seconds=3),
    blob=b"blob",
    anything={"x": [None, True, 1.0, "text", b"raw"]},
    maps=[{"a": 1}, {}],
)


class Diary(msgspec.Struct, frozen=True):
    """A state with journals."""

    pages: Journal[Leaf]
    more: dict[str, Journal[Leaf]] = {}
    cover: Blob | None = None
    scans: Journal[Blob] = Journal()


SCAN = Blob(bytes(70_000))
DIARY = StateCodec(Diary, "Diary").encode(Diary(Journal(), {"a": Journal()}, SCAN, Journal([SCAN, Blob(b"small")])))[0]
DIARY_PAGES = msgspec.msgpack.encode([Leaf(1.5), Leaf(2.5, dt.datetime(2024, 1, 2, tzinfo=dt.UTC))])
DIARY_SCANS = (
    b"\x92" + msgspec.msgpack.encode(encoded_blob(SCAN, [])) + msgspec.msgpack.encode(encoded_blob(Blob(b""), []))
)
DIARY_LAYOUTS = tuple((Piece(Base(1, number), 0, length),) for number, length in ((1, 2), (1, 2), (2, 1), (3, 2)))
MESSAGE = Message(run_id="run", incarnation=1, number=1, message_id="m", body=DIARY_PAGES, sent_at_s=1.0)
PAGES_CHUNK = Chunk(base=Base(1, 1), position=0, count=2, items=DIARY_PAGES)


def kept(state: bytes, pages: bytes, cover: bytes = b"", scans: bytes = DIARY_SCANS) -> LoadedSnapshot:
    """As a store gives it, whose checksums held."""
    rows = (pages, pages, cover or msgspec.msgpack.encode([SCAN.data]), scans)
    chunks = tuple(
        (Chunk(base=layout[0].base, position=0, count=layout[0].end, items=items),)
        for layout, items in zip(DIARY_LAYOUTS, rows, strict=True)
    )
    return LoadedSnapshot(snapshot(Token("run", 1, 1), 3, state, layouts=DIARY_LAYOUTS), None, chunks)


class _Planted:
    """What would leave a file behind if anybody unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# --- what takes records -----------------------------------------------------------------------------------------------

TYPED = (RecordCorrupt, RecordTooLarge, StoreTooNew)
USERS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, ValueError, MemoryError)
"""What a decoder of a user's type may raise: it does so within an attempt of that run, which parks it."""

Target = tuple[Callable[[bytes], object], tuple[type[BaseException], ...]]


def frames() -> dict[str, Target]:
    """Whole frames, as they stand in the file."""
    return {
        "claim": (lambda data: codec.decode_claim(data, KEY), TYPED),
        "record": (lambda data: codec.decode_record(data, KEY), TYPED),
        "snapshot": (lambda data: codec.decode_snapshot(data, KEY), TYPED),
        "outcome": (lambda data: codec.decode_outcome(data, KEY), TYPED),
        "flight": (lambda data: codec.decode_flight(data, KEY), TYPED),
        "link": (lambda data: codec.decode_link(data, KEY), TYPED),
        "number": (lambda data: codec.decode_number(data, KEY), TYPED),
        "chunk": (lambda data: codec.decode_chunk(data, KEY), TYPED),
        "inbox": (lambda data: codec.decode_inbox(data, KEY), TYPED),
        "message": (lambda data: codec.decode_message(data, KEY), TYPED),
        "message id": (lambda data: codec.decode_message_id(data, KEY), TYPED),
        "stamp": (lambda data: codec.peek_stamp(data, codec.Kind.SNAPSHOT, KEY), ()),
    }


def contents(folder: Path) -> dict[str, Target]:
    """What is inside them, and the actors read."""
    hostage = RunDefinition(Hostage)
    diary = StateCodec(Diary, "Diary")
    facts = folder / owner_lock.FACTS_NAME

    def outcome(data: bytes) -> object:
        store = SimpleNamespace(load_outcome=lambda _: data)
        env: Any = SimpleNamespace(store=store)
        return stored_outcome(env, claim(status=RunStatus.COMPLETED), hostage)

    def options(data: bytes) -> object:
        return incarnation_of_record(claim(), record(options=data), hostage).policies

    def owner(data: bytes) -> object:
        facts.write_bytes(data)
        return owner_lock.read_owner(folder)

    return {
        "state": (hostage.states.decode, USERS),
        "input": (hostage.decode_input, USERS),
        "body of a message": (lambda data: hostage.decode_message(data, "m"), (MessageUnreadable, MemoryError)),
        "state with journals": (lambda data: diary.load(kept(data, DIARY_PAGES)), USERS),
        "items of a journal": (lambda data: diary.load(kept(DIARY, data)), USERS),
        "a blob": (lambda data: diary.load(kept(DIARY, DIARY_PAGES, data)), USERS),
        "items with blobs": (lambda data: diary.load(kept(DIARY, DIARY_PAGES, scans=data)), USERS),
        "raw items with blobs for upgrade": (lambda data: plain_state(kept(DIARY, DIARY_PAGES, scans=data)), USERS),
        "raw state for upgrade": (lambda data: plain_state(kept(data, DIARY_PAGES)), USERS),
        "raw items for upgrade": (lambda data: plain_state(kept(DIARY, data)), USERS),
        "next": (decode_next, USERS),
        "result": (outcome, (ResultUnreadable,)),
        "flight record": (decode_flight, UNDECODABLE),
        "options": (options, (OptionsUnreadable,)),
        "owner's facts": (owner, ()),
    }


# --- what is made for them --------------------------------------------------------------------------------------------


def valid_payloads() -> dict[str, list[bytes]]:
    """One or more that each target takes."""
    bag = msgspec.msgpack.encode(BAG)
    token = Token("run", 1, 1)
    error = ErrorInfo(type="ValueError", message="told to")
    payload = codec.HEADER_BYTES
    return {
        "claim": [codec.encode_claim(claim("run", deadline_at_s=5.0), KEY)[payload:]],
        "record": [codec.encode_record(record("run", labels={"a": "b"}, input=bag), KEY)[payload:]],
        "snapshot": [
            codec.encode_snapshot(snapshot(token, 3, bag), KEY)[payload:],
            codec.encode_snapshot(snapshot(token, 3, bag, layouts=DIARY_LAYOUTS), KEY)[payload:],
        ],
        "outcome": [encode_outcome(Completed(BAG))],
        "flight": [FLOWN],
        "link": [codec.encode_link(ParentLink("p", 1, "k"), KEY)[payload:]],
        "number": [b""],
        "chunk": [codec.encode_chunk(PAGES_CHUNK, codec.Stamp(1, 1), KEY, "run")[payload:]],
        "stamp": [bag],
        "state": [bag],
        "state with journals": [DIARY],
        "items of a journal": [DIARY_PAGES],
        "a blob": [msgspec.msgpack.encode([SCAN.data])],
        "items with blobs": [DIARY_SCANS],
        "raw items with blobs for upgrade": [DIARY_SCANS],
        "raw items for upgrade": [DIARY_PAGES],
        "input": [bag],
        "body of a message": [msgspec.msgpack.encode(Give(BAG)), msgspec.msgpack.encode(Ask("x"))],
        "inbox": [codec.encode_inbox(Inbox(incarnation=1, appended=3), KEY)[payload:]],
        "message": [codec.encode_message(MESSAGE, KEY)[payload:]],
        "message id": [b""],
        "raw state for upgrade": [bag, DIARY],
        "next": [encode_next(Waiting(5.0, 1.5)), encode_next(Stepping()), encode_next(Beginning())],
        "result": [encode_outcome(Completed(BAG)), encode_outcome(Failed(error, Phase.STEP, 2))],
        "flight record": [FLOWN, encode_flight(decode_flight(FLOWN))],
        "options": [msgspec.msgpack.encode(Policies())],
        "owner's facts": [msgspec.json.encode(owner_lock.this_process())],
    }


def pickled() -> bytes:
    return pickle.dumps(_Planted(CANARY))


TOKENS = [
    b"\x80", b"\x90", b"\xc0", b"\xc1", b"\xc3", b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf0" + bytes(6), b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7), b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xd6\xff" + bytes(4), b"\xd7\xff" + b"\xff" * 8,
    b"\xc7\x0c\xff" + b"\xff" * 12, b"\xc7\x04\x01abcd", b"\xd8\x05" + bytes(16), b"\xa4type\xa9os.system", b"\xa8__main__",
    b"\xa9timedelta", b"\xa5PT1e9", b"\xa91e999999", b"\xa3NaN", b"\xaa__reduce__", b"\xd6\x4a" + bytes(4), b"\xd6\x4a\x00\x00\x00\x01", b"\xde\xff\xff", b"\xdc\xff\xff",
]  # fmt: skip
"""Pieces of MessagePack that ask for trouble."""


def _lie(rng: random.Random) -> bytes:
    """The head of something that says it is larger than all there is."""
    head = rng.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"))
    return head + struct.pack(">I", rng.choice((2**32 - 1, 2**31, 2**24, 70_000)))


def mutated(rng: random.Random, payload: bytes, others: list[bytes]) -> bytes:
    data = bytearray(payload)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                data[at:at] = rng.choice(TOKENS)
            case 3:
                data[at : at + rng.randrange(1, 30)] = rng.choice((b"", rng.choice(TOKENS)))
            case 4:
                del data[at:]
            case 5:
                other = rng.choice(others)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                data[at:at] = _lie(rng)
    return bytes(data)


def hostile(rng: random.Random, size: int) -> bytes:
    """Made of nothing, about `size` bytes long."""
    fields = (
        b"labels",
        b"input",
        b"kids",
        b"pages",
        b"more",
        b"names",
        b"maps",
        b"anything",
        b"tree",
        b"result",
        b"state",
        b"added later",
    )
    field = rng.choice(fields)
    named = b"\x81" + bytes([0xA0 + len(field)]) + field
    inside = b""
    match rng.randrange(9):
        case 8:
            return b'{"pid":' + rng.choice((b"[", b'{"a":')) * size
        case 0:
            inside = b"\x91" * size + b"\x90"
        case 1:
            inside = (b"\x81\xa4kids\x91") * (size // 7 + 1)
        case 2:
            inside = (
                b"\xdd"
                + struct.pack(">I", size)
                + rng.choice((b"\x80", b"\x90", b"\xa0", b"\x01", b"\xd6\x4a" + bytes(4))) * size
            )
        case 3:
            inside = b"\xdf" + struct.pack(">I", size // 3 + 1) + b"\xa1a\xa0" * (size // 3 + 1)
        case 4:
            inside = b"".join(b"\xdd" + struct.pack(">I", max(size - 5 * n, 0)) for n in range(min(size // 5, 900)))
        case 5:
            inside = b"\xc6" + struct.pack(">I", size) + pickled()[:size].ljust(size, b".")
        case 6:
            inside = pickled()
        case _:
            inside = rng.randbytes(size)
    return rng.choice((inside, named + inside, b"\x82\xa4type\xa4Tree" + named[1:] + inside))


def sealed(rng: random.Random, payload: bytes, kind: int) -> bytes:
    """A frame around it, with checksums that hold whatever its fields say."""
    stamp = [rng.choice((0, 1, 2**63, 2**64 - 1)) for _ in range(3)]
    magic, version, reserved, length = codec.MAGIC, codec.FORMAT_VERSION, 0, len(payload)
    match rng.randrange(12):
        case 0:
            magic = rng.randbytes(4)
        case 1:
            version = rng.randrange(256)
        case 2:
            reserved = rng.randrange(65536)
        case 3:
            length = rng.choice((0, 2**32 - 1, length + 1))
        case 4:
            kind = rng.randrange(256)
        case _:
            pass
    fields = codec._FIELDS.pack(magic, version, kind, reserved, rng.choice((0, 1, 2**32 - 1)), *stamp, length)
    header_sum = zlib.crc32(KEY, zlib.crc32(fields))
    return fields + codec._SUMS.pack(header_sum, zlib.crc32(payload, header_sum)) + payload


KINDS = {
    "claim": codec.Kind.CLAIM,
    "record": codec.Kind.RECORD,
    "snapshot": codec.Kind.SNAPSHOT,
    "outcome": codec.Kind.OUTCOME,
    "flight": codec.Kind.FLIGHT,
    "link": codec.Kind.LINK,
    "number": codec.Kind.META,
    "chunk": codec.Kind.CHUNK,
    "inbox": codec.Kind.INBOX,
    "message": codec.Kind.MESSAGE,
    "message id": codec.Kind.MESSAGE_ID,
    "stamp": codec.Kind.SNAPSHOT,
}


def made(seed: int, number: int, payloads: dict[str, list[bytes]]) -> tuple[str, bytes]:
    """The hostile record of that number, and the target that gets it."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(sorted(payloads))
    others = [payload for several in payloads.values() for payload in several]
    if number % BIG_EVERY == 0:
        data = hostile(rng, rng.choice((2**20, MAX_RECORD_BYTES - 100, MAX_RECORD_BYTES + 100)))
    elif rng.random() < 0.6:
        data = mutated(rng, rng.choice(payloads[name]), others)
    else:
        data = hostile(rng, rng.choice((0, 3, 40, 900, 2000, 20_000)))
    if name in KINDS and rng.random() < 0.9:
        data = sealed(rng, data, KINDS[name])
        if rng.random() < 0.1:
            data = mutated(rng, data, others)
    return name, data


# --- in a process of its own ------------------------------------------------------------------------------------------


class Canary:
    """Sees what the interpreter is asked to do while it is armed. An audit hook stays until its process ends."""

    def __init__(self) -> None:
        self.armed = False
        self.sang: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.armed and (event in SEEN or event.startswith(PREFIXES)):
            own = event == "open" and str(args[0]).endswith(owner_lock.FACTS_NAME)
            if not own:
                self.sang.append(f"{event} {args!r:.80}")

    @contextlib.contextmanager
    def listening(self) -> Any:
        self.armed = True
        try:
            yield
        finally:
            self.armed = False


def _status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def fuzz(seed: int, numbers: range, at: Any, folder: Path) -> list[Any]:
    """Decode the records of these numbers; counts and complaints. `at` holds the number in hand, for who finds us dead."""
    payloads = valid_payloads()
    targets = frames() | contents(folder)
    for name, several in payloads.items():
        for payload in several:  # what valid ones import, they import now
            decode, _ = targets[name]
            with contextlib.suppress(*TYPED):
                decode(codec._frame(KINDS[name], codec.Stamp(), KEY, payload, "run") if name in KINDS else payload)
    safe_text("\0")  # an error's text may need it
    used_bytes = _status_bytes("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + ROOM_BYTES,) * 2)
    canary, counts, wrong = Canary(), Counter[str](), list[str]()
    for number in numbers:
        at[:8] = struct.pack("=Q", number)
        name, data = made(seed, number, payloads)
        decode, allowed = targets[name]
        with canary.listening():
            try:
                decode(data)
                outcome = "decoded"
            except allowed as error:
                outcome = f"refused: {type(error).__name__}"
            except BaseException as error:
                outcome = "refused otherwise"
                wrong.append(f"record {number}, {len(data)} bytes for {name}: {type(error).__name__}: {error!s:.200}")
        counts[outcome] += 1
        if canary.sang:
            wrong.append(f"record {number} for {name}: {canary.sang[:3]}")
            canary.sang.clear()
    counts["most memory at once, MB over the beginning"] = (_status_bytes("VmPeak") - used_bytes) // 2**20
    return [dict(counts), wrong]


def _boot(seed: int, number: int) -> list[Any]:
    """One boot over changed records, in a process of its own."""
    rng = random.Random(f"{seed}/boot {number}")
    payloads = [made(seed, number * 100 + n, {"state": valid_payloads()["state"]})[1] for n in range(1, 99)]
    with tempfile.TemporaryDirectory(prefix="executus-boot-") as folder:
        store = Path(folder) / "runs.store"
        for act in (partial(hostile_boot.fill, store), partial(hostile_boot.plant, store, rng, payloads)):
            filled = forked(act, 120)
            if filled.death:
                return [{}, [f"boot {number} could not be set up: {filled.death}"]]
        trial = forked(partial(hostile_boot.boot, store), 120)
    return trial.answer or [{}, [f"boot {number}: the daemon died: {trial.death}"]]


def run(count: int, seed: int) -> Report:
    """`count` records, and for each BOOT_EVERY of them a boot of a whole runtime over changed ones."""
    began_s = time.monotonic()
    figures: Counter[str] = Counter()
    failures: list[str] = []
    peak_name = "most memory at once, MB over the beginning"
    peak = 0
    at = mmap.mmap(-1, 8)
    CANARY.unlink(missing_ok=True)
    for first in range(0, count, CHUNK):
        numbers = range(first, min(first + CHUNK, count))
        while numbers:
            with tempfile.TemporaryDirectory(prefix="executus-facts-") as folder:
                trial = forked(partial(fuzz, seed, numbers, at, Path(folder)), timeout_s=300)
            if trial.answer is not None:
                counts, wrong = trial.answer
                peak = max(peak, counts.pop(peak_name))
                figures.update(counts)
                failures += wrong
                break
            (number,) = struct.unpack("=Q", at[:8])
            failures.append(f"record {number} for {made(seed, number, valid_payloads())[0]}: {trial.death}")
            numbers = range(number + 1, numbers.stop)
    for number in range(max(1, count // BOOT_EVERY)):
        counts, wrong = _boot(seed, number)
        figures.update(counts)
        failures += wrong
    if CANARY.exists():
        failures.append("a pickle was loaded: its canary sang")
        CANARY.unlink()
    return Report(
        name="decode_fuzz",
        promise=(13, 14),
        count=count,
        failures=tuple(failures),
        figures=dict(sorted(figures.items())) | {peak_name: peak},
        took_s=time.monotonic() - began_s,
    )
