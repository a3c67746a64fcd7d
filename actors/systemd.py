"""What a service manager is told, and what it asks for: the two halves of sd_notify(3) and sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket
from typing import Final

from executus.actors.clock import log, log_contained

SEND_TIMEOUT_S: Final = 0.5
"""How long a manager that does not read may hold up its caller. A datagram is otherwise a matter of microseconds."""


def notify(state: str) -> bool:
    """Tell the manager a state, as "READY=1". Whether it was sent: not where nobody asked to be told (NOTIFY_SOCKET).

    Never raises: a manager that has gone must not take its service along. What went wrong is logged.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # a name in the abstract namespace; the system wants a zero byte there
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(SEND_TIMEOUT_S)
            manager.sendto(state.encode(), address)
    except (OSError, ValueError):
        log_contained(f"the service manager was not told {state}: NOTIFY_SOCKET could not be written to")
        return False
    return True


def watchdog_s() -> float | None:
    """Within what time this process must ping the manager's watchdog, again and again; None where none watches it."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec or not os.environ.get("NOTIFY_SOCKET") or (pid and pid != str(os.getpid())):
        return None
    if not usec.isdecimal() or not int(usec):
        log.error("WATCHDOG_USEC=%.40a is no number of microseconds; no watchdog is pinged", usec)
        return None
    return int(usec) / 1e6
