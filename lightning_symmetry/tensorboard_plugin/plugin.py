"""The plugin that TensorBoard loads, and the routes that its page calls; docs/tab.md describes each route."""

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

from lightning_symmetry.tensorboard_plugin.events import PLUGIN_NAME
from lightning_symmetry.tensorboard_plugin.histories import ArgumentError, Cache, Reader, Summaries
from lightning_symmetry.tensorboard_plugin.page import page_files

_MIMETYPES = {"js": "text/javascript", "css": "text/css"}
_JSON = "application/json"
_PATIENCE = 0.4  # seconds after which an answer about all runs marks those not read yet as pending
_LOG = logging.getLogger(__name__)


class SymmetryLoader(TBLoader):  # type: ignore[misc]
    """Loads the plugin; the entry point of the package names this class."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Make TensorBoard keep all events, because each summary builds on the ones before it."""
        if flags.samples_per_plugin is None:
            flags.samples_per_plugin = {}
        flags.samples_per_plugin[PLUGIN_NAME] = 0

    def load(self, context: TBContext) -> SymmetryPlugin | None:
        """Create the plugin, or return None if TensorBoard has no data provider."""
        return SymmetryPlugin(context) if context.data_provider else None


Answer = Callable[["SymmetryPlugin", Request], tuple[Any, str]]


def _route(answer: Answer) -> Callable[[SymmetryPlugin, Request], Response]:
    """Turn the result or the exception of a method into a response.

    Unexpected errors are only logged, because their messages may contain private paths.
    """

    @wraps(answer)
    def respond(self: SymmetryPlugin, request: Request) -> Response:
        code = 200
        try:
            content, mimetype = answer(self, request)
            if mimetype == _JSON:  # much faster than the conversion in http_util.Respond
                content = json.dumps(content, allow_nan=False, separators=(",", ":"))
        except ArgumentError as error:
            content, mimetype, code = {"error": str(error)}, _JSON, 400
        except errors.PublicError:  # TensorBoard itself responds to these
            raise
        except Exception:
            _LOG.exception("The Symmetry tab failed to answer.")
            message = "The Symmetry tab failed to answer; see the error in the console of TensorBoard."
            content, mimetype, code = {"error": message}, _JSON, 500
        response: Response = http_util.Respond(request, content, mimetype, code=code)
        return response

    return respond


class SymmetryPlugin(TBPlugin):  # type: ignore[misc]
    """The backend of the Symmetry tab, for a context that has a data provider."""

    plugin_name = PLUGIN_NAME

    def __init__(self, context: TBContext) -> None:
        self._provider = context.data_provider
        self._cache = Cache()
        self._summaries = Summaries()
        self._files = {f"/static/{name}": content for name, content in page_files().items()}

    def get_plugin_apps(self) -> dict[str, Callable[[Any, Any], Any]]:
        """Return the applications that answer requests, by route."""
        answers: Mapping[str, Callable[[Request], Response]] = {
            "/runs": self.runs,
            "/run": self.run,
            "/layer": self.layer,
            "/matrix": self.matrix,
            **dict.fromkeys(self._files, self.static),
        }
        return {route: Request.application(answer) for route, answer in answers.items()}

    def is_active(self) -> bool:
        """Return False, which makes TensorBoard show the tab when it finds events of this plugin."""
        return False

    def frontend_metadata(self) -> FrontendMetadata:
        """Return the module that TensorBoard loads into the tab, and the name of the tab."""
        return FrontendMetadata(es_module_path="/static/index.js", tab_name="Symmetry")

    @_route
    def static(self, request: Request) -> tuple[Any, str]:
        """Answer with a file of the page."""
        path = request.path[request.path.index("/static/") :]
        return self._files[path], _MIMETYPES[path.rpartition(".")[2]]

    @_route
    def runs(self, request: Request) -> tuple[Any, str]:
        """Answer with all runs, their versions, and their rows in the table of runs."""
        return {"runs": self._summaries.of(self._reader(request), _PATIENCE)}, _JSON

    @_route
    def run(self, request: Request) -> tuple[Any, str]:
        """Answer with the history of a run."""
        return self._reader(request).history(_argument(request, "run")).to_json(), _JSON

    @_route
    def layer(self, request: Request) -> tuple[Any, str]:
        """Answer with the data that only the view of a layer needs."""
        run, layer = _argument(request, "run"), _argument(request, "layer")
        return self._reader(request).layer(run, layer), _JSON

    @_route
    def matrix(self, request: Request) -> tuple[Any, str]:
        """Answer with the cells of one matrix, one byte each, row by row."""
        run, layer, step = _argument(request, "run"), _argument(request, "layer"), _argument(request, "step")
        # Steps are compared as text, because int() also accepts other spellings, and fails for very long ones.
        matrices = {str(at): matrix for at, matrix in self._reader(request).matrices(run, layer).items()}
        if step not in matrices:
            raise ArgumentError(f"Expected argument `step` to be a step with a matrix of {layer!r} but got {step!r}.")
        return matrices[step].cells, "application/octet-stream"

    def _reader(self, request: Request) -> Reader:
        context = plugin_util.context(request.environ)
        return Reader(self._provider, context, plugin_util.experiment_id(request.environ), self._cache)


def _argument(request: Request, name: str) -> str:
    values = request.args.getlist(name)
    if len(values) != 1:
        raise ArgumentError(f"Expected argument `{name}` once but got it {len(values)} times.")
    return str(values[0])
