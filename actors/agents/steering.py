"""What is said to a running agent: `handle.send(Steer(...))` durably, `handle.tell(Steer(...))` without a promise."""

from __future__ import annotations

from typing import Final

import msgspec

from executus.actors.agents.parts import Image, Message, user


class Steer(msgspec.Struct, frozen=True, tag="steer"):
    """Put this into the conversation before its next step."""

    text: str = ""
    images: tuple[Image, ...] = ()

    @property
    def message(self) -> Message:
        """As the model will see it."""
        return user(self.text, self.images, origin="steer")


class FollowUp(msgspec.Struct, frozen=True, tag="follow_up"):
    """Ask this when the run would otherwise end; it goes on with it then."""

    text: str = ""
    images: tuple[Image, ...] = ()

    @property
    def message(self) -> Message:
        """As the model will see it."""
        return user(self.text, self.images, origin="follow_up")


_decoder: Final = msgspec.msgpack.Decoder(Message)


def checked_message(said: Steer | FollowUp, max_bytes: int) -> Message:
    """As the model will see it. Raises for what no state can hold, of the wrong types or too large, and for nothing."""
    message = said.message
    if not message.parts:
        raise ValueError("it holds neither words nor images")
    data = msgspec.msgpack.encode(message)
    if len(data) > max_bytes:
        raise ValueError(f"it takes {len(data)} bytes, the most is {max_bytes}")
    return _decoder.decode(data)
