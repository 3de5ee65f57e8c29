"""A TCP proxy that cuts connections at the worst moments, is slow, or lets nothing through."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

COMMITTED = b"COMMIT\x00"
"""The server's answer to a COMMIT, on the wire."""


class CuttingProxy:
    """Passes bytes on until `cut` says of a server's answer, or of a client's request, that the
    connection ends instead: neither side gets what was on its way."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut_answer: Callable[[bytes], bool] = lambda _: False
        self.cut_request: Callable[[bytes], bool] = lambda _: False
        self.cuts = 0
        self.delay = 0.0
        """Seconds that bytes are on their way."""
        self._apart = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_next_commit(self) -> None:
        """Commit the next transaction, but tell nobody."""

        def cut(data: bytes) -> bool:
            if COMMITTED not in data:
                return False
            self.cut_answer = lambda _: False
            return True

        self.cut_answer = cut

    def part(self) -> None:
        """Let nothing through, until `heal`."""
        self._apart = True
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        """Let everything through again."""
        self._apart = False

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._apart:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self._open |= {client, server}
                for one, other, cut in (
                    (client, server, lambda data: self.cut_request(data)),
                    (server, client, lambda data: self.cut_answer(data)),
                ):
                    threading.Thread(target=self._pass, args=(one, other, cut), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, cut: Callable[[bytes], bool]) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if cut(data):
                    self.cuts += 1
                    break
                time.sleep(self.delay)
                other.sendall(data)
        self._open -= {one, other}
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
