"""The Symmetry tab as a single HTML file, which opens without TensorBoard."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext

from lightning_symmetry.tensorboard_plugin.cover import STYLE, cover, run_name
from lightning_symmetry.tensorboard_plugin.events import PLUGIN_NAME
from lightning_symmetry.tensorboard_plugin.histories import Cache, Reader
from lightning_symmetry.tensorboard_plugin.page import page_files

_START = """
import {App} from 'symmetry/app.js';
import {EmbeddedSource} from 'symmetry/source.js';
const data = JSON.parse(document.getElementById('data').textContent);
const root = document.getElementById('symmetry');
const isLink = location.hash.includes('view=');
await new App(root, new EmbeddedSource(data)).start();
if (isLink) root.scrollIntoView(); // Past the cover.
"""


def build_report(logdir: Path, *, is_single: bool = False) -> str:
    """Return the report on the runs below a log directory, as HTML that loads no other file.

    Args:
        logdir: a directory as for ``tensorboard --logdir``.
        is_single: whether to read only the run in the directory itself, and none in directories below.

    Raises:
        FileNotFoundError: if there is no such directory.
        LookupError: if it has no run with data of the Symmetry tab.
    """
    if not logdir.is_dir():
        raise FileNotFoundError(f"Expected a directory with TensorBoard runs but got {str(logdir)!r}.")
    events = EventMultiplexer(tensor_size_guidance={PLUGIN_NAME: 0})
    if is_single:
        events.AddRun(str(logdir), ".")
    else:
        events.AddRunsFromDirectory(str(logdir))
    events.Reload()
    reader = Reader(MultiplexerDataProvider(events, str(logdir)), RequestContext(), "", Cache())
    title = run_name(logdir.resolve())
    # TensorBoard calls a run in the directory itself ".".
    names = {run: title if run == "." else run for run in reader.versions()}
    if not names:
        raise LookupError(
            f"No run below {str(logdir)!r} holds data of the Symmetry tab: was SymmetryMonitor among the callbacks of "
            "the Trainer, with a TensorBoardLogger, or this the `output` of a SymmetryTracker?"
        )
    runs = [_run(reader, run, name) for run, name in names.items()]
    histories = [(name, reader.history(run)) for run, name in names.items()]
    head = cover(title, histories, _command(logdir), datetime.now())
    return _page(f"Symmetry report: {title}", head, {"runs": runs})


def _command(logdir: Path) -> str:
    """Return the command that updates a report, without private parts of paths: a report may be passed on."""
    path = os.path.relpath(logdir) if logdir.resolve().is_relative_to(Path.cwd()) else logdir.resolve().name
    return f"lightning-symmetry report {shlex.quote(path)}"


def _run(reader: Reader, run: str, name: str) -> dict[str, Any]:
    history = reader.history(run)
    return {
        "name": name,
        "summary": history.summary() if history.steps else None,
        "history": history.to_json(),
        "layers": {layer: reader.layer(run, layer) for layer in history.layers},
        "matrices": {
            layer: {step: _base64(matrix.cells) for step, matrix in reader.matrices(run, layer).items()}
            for layer in history.layers
        },
    }


def _page(title: str, head: str, data: dict[str, Any]) -> str:
    texts = {name: content.decode() for name, content in page_files().items()}
    modules = {f"symmetry/{name}": _module(text) for name, text in texts.items() if name.endswith(".js")}
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
{texts["style.css"]}{STYLE}</style>
<script type="importmap">{json.dumps({"imports": modules})}</script>
<script type="application/json" id="data">{_embed(data)}</script>
</head>
<body>
{head}
<div id="symmetry"></div>
<noscript>This report needs JavaScript, which is switched off.</noscript>
<script type="module">{_START}</script>
</body>
</html>
"""


def _module(source: str) -> str:
    """Return a module as a data URL. Its relative imports become names of the import map."""
    named = re.sub(r"(from|import) '\./([\w-]+\.js)'", r"\1 'symmetry/\2'", source)
    return f"data:text/javascript;base64,{_base64(named.encode())}"


def _embed(data: Any) -> str:
    """Return JSON for a script element, with the characters escaped that could end the element or begin a comment."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
