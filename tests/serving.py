"""Servers: a real TensorBoard in a separate process, and the files of a folder."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

_PATIENCE_S = 60.0


@dataclass
class Server:
    """A running TensorBoard.

    Attributes:
        url: its address.
        process: its process.
    """

    url: str
    process: subprocess.Popen[bytes]

    def get(self, route: str, **query: str | int) -> tuple[int, str, bytes]:
        """Send a request to the plugin; return status, content type and content."""
        url = f"{self.url}/data/plugin/symmetry/{route}?{urlencode(query)}"
        try:
            with urlopen(url, timeout=_PATIENCE_S) as answer:
                return answer.status, answer.headers.get_content_type(), answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.headers.get_content_type(), error.read()

    def json(self, route: str, **query: str | int) -> Any:
        """Return the plugin's answer as JSON."""
        status, mimetype, content = self.get(route, **query)
        assert (status, mimetype) == (200, "application/json"), content
        return json.loads(content)

    def runs(self) -> list[str]:
        """Return the names of all runs."""
        return [run["name"] for run in self.json("runs")["runs"]]

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(timeout=_PATIENCE_S)


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # named by http.server
        """Log no requests."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; yield the address, without a trailing slash."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def tensorboard(logdir: Path, *flags: str, seconds: float = _PATIENCE_S) -> Iterator[Server]:
    """Start TensorBoard for a log directory, and wait until it has found all runs.

    It reloads every second, the minimum of its default data server; five times as often if it reads the files itself.
    """
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host=127.0.0.1", f"--port={port}"]
    interval = 0.2 if "--load_fast=false" in flags else 1
    process = subprocess.Popen(
        [*command, f"--reload_interval={interval}", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    server = Server(f"http://127.0.0.1:{port}", process)
    num_runs = len({file.parent for file in logdir.rglob("events.out.tfevents.*")})
    try:
        wait_for(lambda: is_up(server) and len(server.runs()) >= num_runs, seconds)
        yield server
    finally:
        server.stop()


def wait_for(condition: Any, seconds: float = _PATIENCE_S) -> Any:
    """Wait until a condition is true, and return its value."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result or time.monotonic() > end:
            assert result, "waited in vain"
            return result
        time.sleep(0.05)


def is_up(server: Server) -> bool:
    """Return whether the server answers."""
    assert server.process.poll() is None, "TensorBoard has ended"
    try:
        with urlopen(f"{server.url}/data/environment", timeout=_PATIENCE_S):
            return True
    except URLError:
        return False
