"""A chat-completions server on loopback that does what it is told: answers, errors, half answers, silence."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass(frozen=True)
class Answer:
    """`says` goes out as it stands. `cut`: the connection ends before the last of it."""

    says: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cut: bool = False


HANG_UP = Answer(status=0)
SILENCE = Answer(status=-1)


def completion(text: str | None = None, calls: Sequence[tuple[str, str, str]] = (), **message: Any) -> Answer:
    """An answer of a model's: words and calls, each (id, name, arguments). It took 11 tokens in and 7 out."""
    if calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
    choice = {
        "index": 0,
        "finish_reason": "tool_calls" if calls else "stop",
        "message": {"role": "assistant", "content": text, **message},
    }
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "test-model",
        "choices": [choice],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }
    return Answer(json.dumps(body).encode())


def refusal(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Answer:
    """An error as providers send it."""
    body = {"error": {"message": message, "type": "error", "code": code}}
    return Answer(json.dumps(body).encode(), status, {name.replace("_", "-"): text for name, text in headers.items()})


class ChatServer:
    """Answers in the order told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.connections: set[socket.socket] = set()
        self.waiting = threading.Semaphore(0)
        """Released by each request that meets silence."""
        self.closing = threading.Event()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.chat = self
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), name="chat-server")

    def will(self, *answers: Answer) -> None:
        self.answers.extend(answers)

    @contextlib.contextmanager
    def running(self) -> Iterator[ChatServer]:
        self._thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._http.shutdown()
            self._thread.join()
            for connection in list(self.connections):
                with contextlib.suppress(OSError):  # gone meanwhile
                    connection.shutdown(socket.SHUT_RDWR)
            self._http.server_close()  # waits for the handlers


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64
    chat: ChatServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.chat.connections.add(self.connection)

    def finish(self) -> None:
        self.server.chat.connections.discard(self.connection)
        super().finish()

    def do_POST(self) -> None:
        chat = self.server.chat
        chat.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        chat.keys.append(self.headers["Authorization"])
        answer = chat.answers.popleft()
        if answer is SILENCE:
            chat.waiting.release()
            while not chat.closing.is_set() and not self._is_gone():
                pass
        if answer in (SILENCE, HANG_UP):
            self.close_connection = True
            return
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.says)), **answer.headers}
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(answer.says[: len(answer.says) // 2] if answer.cut else answer.says)
        self.close_connection = self.close_connection or answer.cut

    def _is_gone(self) -> bool:
        """Whether the client has closed its end. Looks for a hundredth of a second."""
        self.connection.settimeout(0.01)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def log_message(self, *_: Any) -> None:
        pass
