"""Writes the events of the Symmetry tab: few small ones, at little cost if nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry.outputs.event_file import EventFile
from lightning_symmetry.outputs.heatmap import Numbers, numbers_of, order_units, similarity, to_bytes
from lightning_symmetry.outputs.output import Check, Heatmaps, Output
from lightning_symmetry.outputs.tensorboard import MAX_SPACING, Background, Thinning, add_summary
from lightning_symmetry.tensorboard_plugin.events import (
    MATRIX_TAG,
    MAX_SIDE,
    PLUGIN_NAME,
    SUMMARY_TAG,
    pack_matrix,
    pack_summary,
    pack_units,
)
from lightning_symmetry.verdicts.advice import alike_findings, describe_units, sentence, why
from lightning_symmetry.verdicts.diagnoses import Finding, LayerDiagnosis, UnitGroup
from lightning_symmetry.verdicts.look import Look
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.verdict import Verdict

_MAX_GROUPS = 256
_BATCH_BYTES = 1 << 26  # once so much is copied for matrices, these are written before more is copied
_VISIBLE = 4  # similarities that differ by less than 4 of 127 levels look the same
_METADATA = SummaryMetadata(
    plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME), data_class=DATA_CLASS_TENSOR
)
# The summary of most checks, packed once.
_NOTHING: dict[str, Any] = {"version": 1, "layers": {}}
_NO_NEWS = pack_summary(_NOTHING)
Matrix = tuple[list[int], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class _Sample:
    """A copy of some rows of a layer, from which its matrix is made while the training goes on."""

    layer: str
    units: list[int]
    weights: Numbers  # `(len(units), d)`
    gradients: Numbers | None  # likewise

    @classmethod
    def of(cls, layer: LayerDiagnosis, seen: Look) -> _Sample:
        """Copy the rows."""
        units = [unit for part in order_units(layer, MAX_SIDE) for unit in part]
        gradients = None if seen.gradients is None else numbers_of(seen.gradients, units)
        return cls(layer.name, units, numbers_of(seen.weights, units), gradients)

    @property
    def num_bytes(self) -> int:
        return self.weights.nbytes + (0 if self.gradients is None else self.gradients.nbytes)


class SymmetryTab(Output):
    """Writes the changes since the previous check; after a failure, everything.

    Of many checks in a row without changes, only some are written; each lists the steps of those skipped before it. A
    layer gets a matrix when it has changed and at its looks 1, 2, 4, 8, ...; with ``heatmaps="all"`` at every check,
    with ``heatmaps="none"`` never. Matrices are computed in the background.
    """

    name = "Symmetry tab"
    is_foreign = False

    def __init__(self, writer: SummaryWriter, heatmaps: Heatmaps) -> None:
        self._file = EventFile(writer)
        self._heatmaps = heatmaps
        self._background = Background()
        self._reset()

    def _reset(self) -> None:
        self._step = -1
        self._report: SymmetryReport | None = None  # the latest
        self._layers: dict[str, LayerDiagnosis] = {}
        self._values: dict[str, dict[str, Any]] = {}  # by layer, the values that were written
        self._findings: dict[str, list[object]] = {}
        self._num_looks: dict[str, int] = {}
        self._matrices: dict[str, Matrix] = {}  # those that were written last; for the background
        self._thinning = Thinning()
        self._skipped: list[int] = []  # the steps of the latest checks, if they were not written

    def write(self, check: Check) -> None:
        try:
            self._background.raise_failure()
            self._write(check)
        except Exception:
            self._reset()  # it is unknown which parts of this check were written
            raise

    def close(self, report: SymmetryReport) -> None:
        try:
            if self._skipped and not self._file.is_gone:
                self._add_summary(_NOTHING, self._skipped.pop())
        finally:
            self.flush()

    def flush(self) -> None:
        """Wait until all matrices are written."""
        self._background.wait()

    def _write(self, check: Check) -> None:
        report = check.report
        by_layer: dict[str, list[Finding]] = {}
        for finding in check.findings:
            by_layer.setdefault(finding.layer, []).append(finding)
        summary = self._summary(report, by_layer)
        if self._thinning.is_due(is_repetition=summary == _NOTHING):
            self._add_summary(summary, report.step)
        else:
            self._skipped.append(report.step)
        samples: list[_Sample] = []  # for one event, because an event costs more than a matrix
        for seen in check.looks if self._heatmaps != "none" else ():
            layer = report.layers.get(seen.layer.name)
            if layer is None:  # whole modules have no picture
                continue
            looks = self._num_looks[layer.name] = self._num_looks.get(layer.name, 0) + 1
            is_power_of_two = looks & (looks - 1) == 0
            if layer.name in check.changed or is_power_of_two or self._heatmaps == "all":
                samples.append(_Sample.of(layer, seen))
                if sum(sample.num_bytes for sample in samples) > _BATCH_BYTES:
                    self._write_matrices(samples, report.step)
                    self.flush()
                    samples = []
        if samples:
            self._write_matrices(samples, report.step)

    def _write_matrices(self, samples: Sequence[_Sample], step: int) -> None:
        """Write matrices in the background, once those before are written: copies of rows take memory."""
        if self._background.is_busy:
            self.flush()
        self._background.run(_write_new_matrices, self._file, self._matrices, samples, step)

    def _add_summary(self, summary: dict[str, Any], step: int) -> None:
        """Write a summary, and the steps that were skipped before it."""
        if self._skipped:
            summary = {**summary, "quiet": pack_units(self._skipped, MAX_SPACING)}
        data = _NO_NEWS if summary == _NOTHING else pack_summary(summary)
        self._file.add([_value(SUMMARY_TAG, data)], step)
        self._skipped = []

    def _summary(self, report: SymmetryReport, findings: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
        latest, self._report = self._report, report
        if latest is not None and latest.layers is report.layers and latest.step < report.step and not findings:
            self._step = report.step
            return _NOTHING  # the usual case
        layers = {layer.name: layer for layer in report.distinct_layers}
        # If a training continues from an earlier step, readers forget the later steps and their changes.
        is_full = report.step <= self._step or list(layers) != list(self._layers)
        if is_full:
            self._layers, self._values, self._findings = {}, {}, {}
        summary: dict[str, Any] = {"version": 1, "layers": {}}
        for name, layer in layers.items():
            if layer is not self._layers.get(name) and layer != self._layers.get(name):
                values, before = _layer_values(layer), self._values.get(name, {})
                changes = {key: values[key] for key in values if key not in before or values[key] != before[key]}
                if changes:  # the number of idle units, for example, is not shown
                    summary["layers"][name] = changes
                self._values[name] = values
        changed = {}
        for name, found in findings.items():
            # Without `last_step`, which changes at every check.
            state: list[object] = [
                (f.units, f.verdict, f.cause, f.first_step, f.broken_step, f.stop, f.follows, f.kept_by) for f in found
            ]
            if state != self._findings.get(name):
                changed[name] = _findings_values(found, report)
                self._findings[name] = state
        if is_full:
            summary["full"] = True
        if changed:
            summary["findings"] = changed
        self._layers, self._step = layers, report.step
        return summary


def _write_new_matrices(file: EventFile, latest: dict[str, Matrix], samples: Sequence[_Sample], step: int) -> None:
    """Write the matrices that look different from those written last, which are in ``latest``, by layer."""
    values: list[Summary.Value] = []
    for sample in samples:
        cells = to_bytes(similarity(sample.weights, sample.gradients))
        units, before = latest.get(sample.layer, ([], cells))
        if units == sample.units and (np.abs(before.astype(int) - cells) < _VISIBLE).all():
            continue
        latest[sample.layer] = (sample.units, cells)
        values.append(_value(MATRIX_TAG + sample.layer, pack_matrix(sample.units, cells.tobytes())))
    if values and not file.is_gone:
        file.add(values, step)


def add_event(writer: SummaryWriter, tag: str, data: bytes, step: int) -> None:
    """Write one event of the tab into the file of a writer."""
    add_summary(writer, [_value(tag, data)], step)


def _value(tag: str, data: bytes) -> Summary.Value:
    """Return a value with the plugin's name and the data class: TensorBoard ignores values without them."""
    return Summary.Value(tag=tag, metadata=_METADATA, tensor=TensorProto(dtype=DT_STRING, string_val=[data]))


def _layer_values(layer: LayerDiagnosis) -> dict[str, Any]:
    groups = layer.groups[:_MAX_GROUPS]
    # Dead units are counted here only if they form a group, that is if there are enough for a warning.
    counts = {str(v): sum(len(group.units) for group in layer.groups if group.verdict is v) for v in Verdict}
    return {
        "units": layer.num_units,
        "fan_in": layer.fan_in,
        "width": layer.effective_width,
        "dead": layer.dead_units,
        "both": layer.working_units - layer.effective_width + layer.dead_units,  # dead and redundant
        "orientations": layer.orientations,
        "counts": {verdict: number for verdict, number in counts.items() if number},
        "groups": [_group_values(group) for group in groups],
        "num_groups": len(layer.groups),
        "also": list(layer.also),
    }


def _group_values(group: UnitGroup) -> list[Any]:
    values = [pack_units(group.units), len(group.units), str(group.verdict), group.first_step or 0]
    return [*values, pack_units(group.mirrored)] if group.mirrored else values


def _findings_values(findings: Sequence[Finding], report: SymmetryReport) -> list[dict[str, Any]]:
    return [
        {
            "who": describe_units(alike, report),
            "verdict": str(alike[0].verdict),
            "since": alike[0].first_step,
            "broken": alike[0].broken_step,
            "origin": str(alike[0].origin),
            "what": sentence(alike, report),
            "why": why(alike, report),
            "groups": [pack_units(finding.units) for finding in alike[:_MAX_GROUPS]],
            "num_groups": len(alike),
        }
        for alike in alike_findings(findings, report)[:_MAX_GROUPS]
    ]
