"""What registration learns of a run class: names, types, codecs, which callbacks are async.

The reading of user types itself is in `user_types`.
"""

from __future__ import annotations

import contextvars
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect as types

from executus.actors.errors import (
    InvalidInput,
    InvalidMessage,
    InvalidRunType,
    MessageUnreadable,
    NotRegistered,
    WrongReturn,
)
from executus.actors.outcomes import safe_text
from executus.actors.policies import Policies, RestartPolicy, SavePolicy, StopPolicy
from executus.actors.run import Next, Run
from executus.actors.state_codec import MAX_VALUE_BYTES, StateCodec
from executus.actors.user_types import (
    decoder_of,
    exact_classes,
    is_immutable,
    message_type_of,
    run_class_of,
    type_arguments,
)
from executus.stores import MAX_LABELS

MAX_MESSAGE_ID_BYTES: Final = 1000
CALLBACKS: Final = ("begin", "step", "receive", "query", "stopping")
LOOKS: Final = ("resuming", "may_go_ahead")
"""These look at a state and are never async."""
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_next_decoder: msgspec.msgpack.Decoder[Next] = msgspec.msgpack.Decoder(Next)


class RunDefinition:
    """A registered run type. Immutable after construction and safe on any thread.

    `immutable` says that a state can be handed on by reference and encoded late; otherwise it is encoded at once.
    `looks_at_stored` says that its runs have a `resuming`, `goes_ahead` a `may_go_ahead` of their own. `states` is the
    codec of its states.
    """

    __slots__ = (
        "_classes",
        "_input_decoder",
        "_message_classes",
        "_message_decoder",
        "aliases",
        "async_callbacks",
        "default_callbacks",
        "goes_ahead",
        "immutable",
        "looks_at_stored",
        "make",
        "message_type",
        "name",
        "policies",
        "result_type",
        "run_class",
        "schema_version",
        "states",
    )

    def __init__(self, make: Callable[[], Run[Any, Any, Any]], defaults: Policies = Policies()) -> None:  # noqa: B008 - frozen
        run_class = run_class_of(make)
        self.make = make
        self.run_class = run_class
        self.name = str(getattr(make, "run_type", None) or getattr(run_class, "run_type", run_class.__name__))
        self.aliases = tuple(run_class.aliases)
        self.schema_version = run_class.schema_version
        self.policies = Policies(
            defaults.restart if run_class.restart_policy is Run.restart_policy else run_class.restart_policy,
            defaults.save if run_class.save_policy is Run.save_policy else run_class.save_policy,
            defaults.stop if run_class.stop_policy is Run.stop_policy else run_class.stop_policy,
        )
        for name in ("begin", "step"):
            if getattr(run_class, name) is getattr(Run, name):
                raise InvalidRunType(self.name, f"it defines no {name}()")
        if not 1 <= self.schema_version < 1 << 31:
            raise InvalidRunType(
                self.name, f"schema_version must be a whole number from 1, not {self.schema_version!r}"
            )
        are_async = {n for n in (*CALLBACKS, *LOOKS) if inspect.iscoroutinefunction(getattr(run_class, n))}
        for name in are_async.intersection(LOOKS):
            raise InvalidRunType(self.name, f"its {name}() is async; it only looks at the state, as a plain function")
        are_default = {n for n in (*CALLBACKS, *LOOKS) if getattr(run_class, n) is getattr(Run, n)}
        self.async_callbacks = frozenset(are_async)
        self.default_callbacks = frozenset(are_default)
        self.looks_at_stored = "resuming" not in are_default
        self.goes_ahead = "may_go_ahead" not in are_default

        input_type, state_type, self.result_type = type_arguments(run_class, self.name)
        self.message_type = message_type_of(run_class, self.name)
        self._input_decoder = decoder_of(input_type, "Input", self.name)
        self.states = StateCodec(state_type, self.name)
        decoder_of(self.result_type, "Result", self.name)
        state_info = types.type_info(state_type)
        self._classes = exact_classes(state_info)
        if not self._classes or type(None) in self._classes:
            raise InvalidRunType(
                self.name,
                "State must name its type, and not admit None or Any: a callback that forgot its return "
                "could not be told from one that meant it",
            )
        self.immutable = is_immutable(state_info, set())
        self._message_classes: frozenset[type] = frozenset()
        self._message_decoder: msgspec.msgpack.Decoder[Any] | None = None
        if self.message_type is not None:
            self._message_decoder = decoder_of(self.message_type, "message", self.name)
            self._message_classes = exact_classes(types.type_info(self.message_type))

    def __repr__(self) -> str:
        return f"<RunDefinition {self.name!r}>"

    def overridden(
        self, restart: RestartPolicy | None, save: SavePolicy | None, stop: StopPolicy | None
    ) -> tuple[Policies, bytes]:
        """The policies of a run that is started with these, and their bytes for its record: none for its type's own."""
        policies = Policies(restart or self.policies.restart, save or self.policies.save, stop or self.policies.stop)
        return policies, _encoder.encode(policies) if policies != self.policies else b""

    # input

    def encode_input(self, value: object) -> bytes:
        """Validate and encode an input. Raises InvalidInput."""
        try:
            data = _encoder.encode(value)
            self._input_decoder.decode(data)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
            msg = f"run type {self.name!r}: the input does not fit: {safe_text(error)}. Nothing was started."
            raise InvalidInput(msg) from error
        if len(data) > MAX_VALUE_BYTES:
            msg = (
                f"run type {self.name!r}: the input takes {len(data)} bytes, the cap is {MAX_VALUE_BYTES}. "
                "Nothing was started."
            )
            raise InvalidInput(msg)
        return data

    def decode_input(self, data: bytes) -> Any:
        """A fresh input value. Raises msgspec.ValidationError where the type has changed since."""
        return self._input_decoder.decode(data)

    # states

    def check_state(self, state: object, callback: str) -> None:
        """Raise WrongReturn unless `state` is exactly of the declared type."""
        if type(state) not in self._classes:
            wanted = " | ".join(sorted(kind.__name__ for kind in self._classes))
            hint = "did it forget its return?" if state is None else "a subclass would come back as its base"
            hint = (
                hint
                if state is None or isinstance(state, tuple(self._classes))
                else "return the next state, Wait(state) or Done(result)"
            )
            returned = "None" if state is None else type(state).__name__
            msg = f"{self.name}.{callback} returned {returned}, declared is {wanted}: {hint}"
            raise WrongReturn(msg)

    def look_at_stored(self, run: Run[Any, Any, Any], state: object) -> None:
        """Have a run look at a state from the store, without a context. Raises what its `resuming` raises."""
        if self.looks_at_stored:
            contextvars.Context().run(run.resuming, state)

    # results and messages

    def encode_result_check(self, result: object) -> None:
        """Raise WrongReturn unless the result can be stored and read back as the declared type."""
        try:
            data = _encoder.encode(result)
            msgspec.msgpack.decode(data, type=self.result_type)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
            msg = f"{self.name}: Done's result cannot be kept as {self.result_type}: {safe_text(error)}"
            raise WrongReturn(msg) from error
        if len(data) > MAX_VALUE_BYTES:
            msg = f"{self.name}: Done's result takes {len(data)} bytes, the cap is {MAX_VALUE_BYTES}"
            raise WrongReturn(msg)

    def check_message(self, message: object) -> None:
        """Raise InvalidMessage unless `receive` declares this message's type."""
        if self.message_type is None:
            msg = f"run type {self.name!r} takes no messages: it defines no receive(). The message was not delivered."
            raise InvalidMessage(msg)
        if self._message_classes and type(message) not in self._message_classes:
            wanted = " | ".join(sorted(kind.__name__ for kind in self._message_classes))
            msg = (
                f"run type {self.name!r}: receive takes {wanted}, not {type(message).__name__}. The message "
                "was not delivered."
            )
            raise InvalidMessage(msg)

    def encode_message(self, message: object) -> tuple[bytes, Any]:
        """A durable message as it is stored, and as it is read back from that. Raises InvalidMessage."""
        self.check_message(message)
        assert self._message_decoder is not None
        try:
            data = _encoder.encode(message)
            back = self._message_decoder.decode(data)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
            msg = f"run type {self.name!r}: the message cannot be stored: {safe_text(error)}. It was not sent."
            raise InvalidMessage(msg) from error
        if type(back) is not type(message):
            msg = (
                f"run type {self.name!r}: a {type(message).__name__} would come back as {type(back).__name__}. Name "
                "the types in the annotation of receive's message. It was not sent."
            )
            raise InvalidMessage(msg)
        if len(data) > MAX_VALUE_BYTES:
            msg = (
                f"run type {self.name!r}: the message takes {len(data)} bytes, the cap is {MAX_VALUE_BYTES}. "
                "It was not sent."
            )
            raise InvalidMessage(msg)
        return data, back

    def decode_message(self, data: bytes, message_id: str) -> Any:
        """A stored message. Raises MessageUnreadable where it does not fit what `receive` declares now."""
        if self._message_decoder is None:
            raise MessageUnreadable(
                f"run type {self.name!r} takes no messages any more, and {message_id!a} waits for it"
            )
        try:
            return self._message_decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            msg = f"run type {self.name!r}: its message {message_id!a} does not fit receive: {safe_text(error)}"
            raise MessageUnreadable(msg) from error


def checked_message_id(message_id: object, draw: Callable[[], str]) -> str:
    """An id that the store can keep, or one that is drawn. Raises InvalidMessage."""
    if message_id is None:
        return draw()
    if not isinstance(message_id, str) or not message_id or not _is_utf8(message_id):
        raise InvalidMessage(
            f"a message_id is a text of valid UTF-8, not {message_id!a:.80}. The message was not sent."
        )
    if len(message_id.encode()) > MAX_MESSAGE_ID_BYTES:
        raise InvalidMessage(
            f"the message_id takes more than {MAX_MESSAGE_ID_BYTES} bytes; give a digest of it. Nothing was sent."
        )
    return message_id


def expiry(expires_s: float | None, wall_s: float) -> float | None:
    """The wall time at which a message expires. Raises ValueError."""
    if expires_s is None:
        return None
    if not 0 < expires_s < math.inf:  # NaN is refused, too
        raise ValueError(
            f"expires_s must be a positive number of seconds, not {expires_s!r}. The message was not sent."
        )
    return wall_s + expires_s


def checked_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of labels that the store will take. Raises TypeError and ValueError."""
    checked: dict[Any, Any] = dict(labels or {})
    if len(checked) > MAX_LABELS:
        msg = f"{len(checked)} labels, the most is {MAX_LABELS}. Nothing was started."
        raise ValueError(msg)
    for key, value in checked.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            msg = f"labels are texts by texts, not {key!r}: {value!r}. Nothing was started."
            raise TypeError(msg)
        if not _is_utf8(key + value):
            msg = f"label {key!a}: {value!a} holds a lone surrogate, which no store can keep. Nothing was started."
            raise ValueError(msg)
    return checked


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_next(following: Next) -> bytes:
    """What comes next, as a snapshot keeps it."""
    return _encoder.encode(following)


def decode_next(data: bytes) -> Next:
    """What came next when the snapshot was taken."""
    return _next_decoder.decode(data)


class Registry:
    """The registered run types by name and by class. Raises InvalidRunType for two of one name."""

    def __init__(self, runs: Iterable[Callable[[], Run[Any, Any, Any]]], defaults: Policies) -> None:
        self._by_name: dict[str, RunDefinition] = {}
        self._by_class: dict[type, RunDefinition] = {}
        if isinstance(runs, type) or not hasattr(runs, "__iter__"):
            raise InvalidRunType(safe_text(runs), "runs= takes a list of run classes, even for one: runs=[MyRun]")
        for make in runs:
            definition = RunDefinition(make, defaults)
            for name in (definition.name, *definition.aliases):
                if name in self._by_name:
                    raise InvalidRunType(
                        name,
                        f"two run types carry this name: {self._by_name[name].run_class!r} and "
                        f"{definition.run_class!r}; set run_type",
                    )
                self._by_name[name] = definition
            self._by_class[definition.run_class] = definition

    def __iter__(self) -> typing.Iterator[RunDefinition]:
        return iter(self._by_class.values())

    def named(self, name: str) -> RunDefinition | None:
        """The run type of that name or alias, if it is registered."""
        return self._by_name.get(name)

    def of(self, run_class: type[Run[Any, Any, Any]]) -> RunDefinition:
        """The definition of a run class. Raises NotRegistered."""
        definition = self._by_class.get(run_class)
        if definition is None:
            name = getattr(run_class, "__name__", repr(run_class))
            known = ", ".join(sorted(self._by_name)) or "none"
            msg = (
                f"{name} is not registered with this runtime; known are: {known}. Add it to runs=[...]. "
                "Nothing was started."
            )
            raise NotRegistered(msg)
        return definition


# --- reading a user's types
