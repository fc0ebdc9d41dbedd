"""A package index on this machine, which has only our own distributions."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typing_extensions import override

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ROOT / "dist"


def wheel() -> Path:
    """The wheel that ``make dist`` has built.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = sorted(DISTRIBUTIONS.glob("lightning_symmetry-*.whl"))
    if len(found) != 1:
        raise FileNotFoundError(f"Expected one wheel in {DISTRIBUTIONS} but found {len(found)}: run `make dist` first.")
    return found[0]


class _Quiet(SimpleHTTPRequestHandler):
    @override
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the distributions as a simple index (PEP 503) while the context lasts.

    Args:
        folder: an empty folder, in which the pages of the index are made.

    Yields:
        The address for pip's ``--index-url`` or ``--extra-index-url``.
    """
    project = folder / "simple" / "lightning-symmetry"
    project.mkdir(parents=True)
    for file in (wheel(), *DISTRIBUTIONS.glob("lightning_symmetry-*.tar.gz")):
        shutil.copy(file, project)  # the server lists a folder as links to what is in it, which is what pip reads
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple/"
    finally:
        server.shutdown()
        server.server_close()
