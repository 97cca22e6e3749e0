"""A way to a server that can be cut and mended: bytes go through it as they come."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

from ray_nodes import free_port


class ShakyWire:
    """Listens on a port of its own, in front of the server at `url`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._dropped = ("", 0)

    def __enter__(self) -> ShakyWire:
        self.mend()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and take no other."""
        assert self._listener is not None
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def drop_answers_to(self, method: str, *, times: int) -> None:
        """The server gets the next such requests, and its answers are lost."""
        self._dropped = (method, times)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(self._server)
                self._open += [here, there]
                for pair in ((here, there, True), (there, here, False)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with suppress(OSError):
            first = asks
            while data := source.recv(65536):
                method, times = self._dropped
                if first and times and data.startswith(method.encode()):
                    self._dropped = (method, times - 1)
                    self._lose_answer(source, target, data)
                    return
                first = False
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _lose_answer(self, source: socket.socket, target: socket.socket, data: bytes) -> None:
        """Hand the request over whole, wait for the answer, and break off."""
        with socket.create_connection(self._server) as again:
            again.sendall(data)
            source.settimeout(1)
            with suppress(TimeoutError):
                while more := source.recv(65536):
                    again.sendall(more)
            again.recv(65536)
        for each in (source, target):
            each.close()
