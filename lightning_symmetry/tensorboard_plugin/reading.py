"""From TensorBoard's data provider to histories and matrices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from threading import Lock
from typing import Any, TypeVar

from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider, RunTagFilter, TensorDatum

from lightning_symmetry.tensorboard_plugin.events import (
    MATRIX_TAG,
    PLUGIN_NAME,
    SUMMARY_TAG,
    PayloadError,
    natural_order,
    unpack_matrix,
)
from lightning_symmetry.tensorboard_plugin.folding import RunHistory, fold

T = TypeVar("T")
_ALL = 10_000_000  # of the stored events: a summary builds on the ones before it


class ArgumentError(ValueError):
    """A run, layer or step that does not exist or is none; the message is fit for the reader's eyes."""


class Reader:
    """Reads the Symmetry tab's events of one experiment.

    Args:
        provider: TensorBoard's way to the data, whatever stands behind it.
        context: of the request.
        experiment: identity of the experiment; empty for a log directory.
        cache: what was read before, to be shared by readers.
    """

    def __init__(self, provider: DataProvider, context: RequestContext, experiment: str, cache: Cache) -> None:
        self._provider = provider
        self._context = context
        self._experiment = experiment
        self._cache = cache

    def versions(self) -> dict[str, str]:
        """By run, in natural order, a text that changes with its data."""
        series = self._list(RunTagFilter(tags=[SUMMARY_TAG]))
        runs = sorted(series, key=natural_order)
        return {run: series[run][SUMMARY_TAG] for run in runs}

    def history(self, run: str) -> RunHistory:
        """What the summaries of a run tell.

        Raises:
            ArgumentError: if there is no such run.
        """
        version = self._list(RunTagFilter(runs=[run], tags=[SUMMARY_TAG])).get(run, {}).get(SUMMARY_TAG)
        if version is None:
            raise ArgumentError(f"Expected argument `run` to be a run with data of the Symmetry tab but got {run!r}.")
        return self._cache.get((self._experiment, run), version, lambda: fold(_payloads(self._read(run, SUMMARY_TAG))))

    def layer(self, run: str, layer: str) -> dict[str, Any]:
        """A layer over time, and the step and the units of each matrix; ready for JSON.

        Raises:
            ArgumentError: if there is no such run, or it has no such layer.
        """
        matrices = self.matrices(run, layer)
        shown = [[step, units] for step, (units, _) in sorted(matrices.items())]
        return {**self.history(run).layer_to_json(layer), "matrices": shown}

    def matrices(self, run: str, layer: str) -> dict[int, tuple[list[int], bytes]]:
        """By step, the units shown and the cells of each matrix of a layer; what cannot be read is left out.

        Raises:
            ArgumentError: if there is no such run, or it has no such layer.
        """
        if layer not in self.history(run).layers:
            raise ArgumentError(f"Expected argument `layer` to be a layer of run {run!r} but got {layer!r}.")
        tag = MATRIX_TAG + layer
        version = self._list(RunTagFilter(runs=[run], tags=[tag])).get(run, {}).get(tag)
        if version is None:
            return {}
        return self._cache.get(
            (self._experiment, run, layer), version, lambda: _matrices(_payloads(self._read(run, tag)))
        )

    def _list(self, wanted: RunTagFilter) -> dict[str, dict[str, str]]:
        series = self._provider.list_tensors(
            self._context, experiment_id=self._experiment, plugin_name=PLUGIN_NAME, run_tag_filter=wanted
        )
        return {
            run: {tag: f"{values.max_step}@{values.max_wall_time}" for tag, values in tags.items()}
            for run, tags in series.items()
        }

    def _read(self, run: str, tag: str) -> Iterable[TensorDatum]:
        data: Mapping[str, Mapping[str, list[TensorDatum]]] = self._provider.read_tensors(
            self._context,
            experiment_id=self._experiment,
            plugin_name=PLUGIN_NAME,
            downsample=_ALL,
            run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
        )
        return data.get(run, {}).get(tag, [])


class Cache:
    """Keeps what was computed of a version of something; the least recently used go first.

    Args:
        size: number of things to keep.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._lock = Lock()
        self._kept: dict[Hashable, tuple[str, Any]] = {}

    def get(self, key: Hashable, version: str, compute: Callable[[], T]) -> T:
        """What ``compute`` returned of this version, or returns now."""
        with self._lock:
            kept = self._kept.get(key)
        value: T = kept[1] if kept and kept[0] == version else compute()
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = (version, value)
            while len(self._kept) > self._size:
                del self._kept[next(iter(self._kept))]
        return value


def _payloads(data: Iterable[TensorDatum]) -> Iterable[tuple[int, bytes]]:
    for datum in data:
        content = datum.numpy.reshape(-1)[:1].tolist()
        yield datum.step, content[0] if content and isinstance(content[0], bytes) else b""


def _matrices(payloads: Iterable[tuple[int, bytes]]) -> dict[int, tuple[list[int], bytes]]:
    matrices: dict[int, tuple[list[int], bytes]] = {}
    for step, data in payloads:
        for later in [other for other in matrices if other > step]:  # of a training that started again from before
            del matrices[later]
        try:
            matrices[step] = unpack_matrix(data)
        except PayloadError:
            continue
    return matrices
