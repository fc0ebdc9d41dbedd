"""The backend: what TensorBoard asks a plugin for, and what the page asks the backend for."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins.base_plugin import FrontendMetadata, TBContext, TBLoader, TBPlugin
from werkzeug.wrappers import Request, Response

from lightning_symmetry.tensorboard_plugin import STATIC
from lightning_symmetry.tensorboard_plugin.events import PLUGIN_NAME
from lightning_symmetry.tensorboard_plugin.reading import ArgumentError, Cache, Reader

_MIMETYPES = {".js": "text/javascript", ".css": "text/css"}
_JSON = "application/json"
_LOG = logging.getLogger(__name__)


class SymmetryLoader(TBLoader):  # type: ignore[misc]
    """What the entry point names."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Keep all events: a summary builds on the ones before it, so that a sample of them would tell lies."""
        if flags.samples_per_plugin is None:
            flags.samples_per_plugin = {}
        flags.samples_per_plugin[PLUGIN_NAME] = 0

    def load(self, context: TBContext) -> SymmetryPlugin | None:
        """The plugin; None where TensorBoard has no data provider."""
        return SymmetryPlugin(context) if context.data_provider else None


Answer = Callable[["SymmetryPlugin", Request], tuple[Any, str]]


def _route(answer: Answer) -> Callable[[SymmetryPlugin, Request], Response]:
    """Turn what a method returns or raises into a response; what went wrong inside stays inside."""

    @wraps(answer)
    def respond(self: SymmetryPlugin, request: Request) -> Response:
        code = 200
        try:
            content, mimetype = answer(self, request)
            if mimetype == _JSON:  # many times faster than TensorBoard's own way
                content = json.dumps(content, allow_nan=False, separators=(",", ":"))
        except ArgumentError as error:
            content, mimetype, code = {"error": str(error)}, _JSON, 400
        except errors.PublicError:  # TensorBoard's own, which it knows how to tell
            raise
        except Exception:
            _LOG.exception("The Symmetry tab failed to answer.")
            message = "The Symmetry tab failed to answer; the console of TensorBoard tells why."
            content, mimetype, code = {"error": message}, _JSON, 500
        response: Response = http_util.Respond(request, content, mimetype, code=code)
        return response

    return respond


class SymmetryPlugin(TBPlugin):  # type: ignore[misc]
    """The Symmetry tab."""

    plugin_name = PLUGIN_NAME

    def __init__(self, context: TBContext) -> None:
        self._provider = context.data_provider
        self._cache = Cache()
        self._files = {
            f"/static/{file.name}": (file, mimetype)
            for file in STATIC.iterdir()
            for suffix, mimetype in _MIMETYPES.items()
            if file.name.endswith(suffix)
        }

    def get_plugin_apps(self) -> dict[str, Callable[[Any, Any], Any]]:
        """By route, the application that answers."""
        answers: Mapping[str, Callable[[Request], Response]] = {
            "/runs": self.runs,
            "/run": self.run,
            "/layer": self.layer,
            "/matrix": self.matrix,
            **dict.fromkeys(self._files, self.static),
        }
        return {route: Request.application(answer) for route, answer in answers.items()}

    def is_active(self) -> bool:
        """False: TensorBoard looks for itself whether there are events of this plugin."""
        return False

    def frontend_metadata(self) -> FrontendMetadata:
        """Where the page is, and what the tab is called."""
        return FrontendMetadata(es_module_path="/static/index.js", tab_name="Symmetry")

    @_route
    def static(self, request: Request) -> tuple[Any, str]:
        """A file of the page."""
        file, mimetype = self._files[request.path[request.path.index("/static/") :]]
        return file.read_bytes(), mimetype

    @_route
    def runs(self, request: Request) -> tuple[Any, str]:
        """All runs, each with a text that changes with its data."""
        versions = self._reader(request).versions()
        return {"runs": [{"name": run, "version": version} for run, version in versions.items()]}, _JSON

    @_route
    def run(self, request: Request) -> tuple[Any, str]:
        """The history of a run."""
        return self._reader(request).history(_argument(request, "run")).to_json(), _JSON

    @_route
    def layer(self, request: Request) -> tuple[Any, str]:
        """The groups of a layer over time, and which matrices there are."""
        run, layer = _argument(request, "run"), _argument(request, "layer")
        return self._reader(request).layer(run, layer), _JSON

    @_route
    def matrix(self, request: Request) -> tuple[Any, str]:
        """The cells of one matrix, a byte each."""
        run, layer, step = _argument(request, "run"), _argument(request, "layer"), _argument(request, "step")
        # By their texts, so that there is no text which is no step.
        matrices = {str(at): cells for at, (_, cells) in self._reader(request).matrices(run, layer).items()}
        if step not in matrices:
            raise ArgumentError(f"Expected argument `step` to be a step with a matrix of {layer!r} but got {step!r}.")
        return matrices[step], "application/octet-stream"

    def _reader(self, request: Request) -> Reader:
        context = plugin_util.context(request.environ)
        return Reader(self._provider, context, plugin_util.experiment_id(request.environ), self._cache)


def _argument(request: Request, name: str) -> str:
    values = request.args.getlist(name)
    if len(values) != 1:
        raise ArgumentError(f"Expected argument `{name}` once but got it {len(values)} times.")
    return str(values[0])
