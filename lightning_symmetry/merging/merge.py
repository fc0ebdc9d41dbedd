"""The same network with fewer units."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.arguments import check_module
from lightning_symmetry.engine.diagnose import diagnose
from lightning_symmetry.merging.coupling import torch_pruning
from lightning_symmetry.merging.edits import Edit, gradient_scales
from lightning_symmetry.merging.errors import MergeError, NotMergedError, describe
from lightning_symmetry.merging.layers import Step, merge_units
from lightning_symmetry.merging.optimizers import carried_over, check_optimizer
from lightning_symmetry.merging.sets import Signed
from lightning_symmetry.merging.trials import Trial
from lightning_symmetry.merging.verification import Inputs, Original, own_surroundings
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.naming import readable_modules
from lightning_symmetry.verdicts.diagnoses import LayerDiagnosis, UnitGroup
from lightning_symmetry.verdicts.report import SymmetryReport, check_report

__all__ = ["MergeError", "Merged", "merge_duplicates"]


@dataclass(frozen=True)
class Merged:
    """A network that computes the same as another one, with fewer units.

    Attributes:
        model: the merged network, a copy without gradients.
        removed: by layer name, the indices of the units that are gone, as the original layer counts them.
        parameters_before: number of parameters of the original network.
        parameters_after: number of parameters of the merged one.
        error: the largest relative distance ``||a - b|| / ||a||`` between outputs of both, on the example inputs and on
            random ones, computed in float64, if the model can be run so.
        left: by layer name, why groups of the layer were not merged, in whole or in part.
        optimizer: an optimizer over the parameters of ``model`` that carries on where the given one stands; None if
            none was given.
        gradient_scale: by parameter name, what to multiply the gradient by so that SGD goes on as in the original
            network, to be broadcast to the parameter. Only parameters that require one, and for which it is not 1.
    """

    model: nn.Module
    removed: dict[str, tuple[int, ...]]
    parameters_before: int
    parameters_after: int
    error: float
    left: dict[str, str]
    optimizer: torch.optim.Optimizer | None
    gradient_scale: dict[str, Tensor]


def merge_duplicates(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...] | dict[str, Any],
    *,
    report: SymmetryReport | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Merged:
    """Make the same network with fewer units.

    Of each group of units with equal incoming weights the first stays, and the outgoing weights of the others are
    added to its own: ``v_1 h + ... + v_m h = (v_1 + ... + v_m) h``. Mirror images enter with a minus sign, where the
    activation is odd. Then the others are removed, with all that goes with them, by the dependency graph of
    torch-pruning. Each layer is merged on a copy, and that is kept only if its outputs are those of the original
    network: within a relative error of 1e-5 in float32, 1e-12 in float64, in evaluation mode, on the example inputs and
    on random ones. So that no numbers hide what else reads the units, it is also tried in float64 with noise on all
    parameters, in both modes and with inputs of several sizes, within 1e-9. Units that may be read on a path that none
    of these runs took are left. Dead units are not merged.

    The merged network does not by itself train as the original one. Let ``m`` units have the incoming weights ``w`` and
    the outgoing weights ``v``; the merged unit has ``w`` and ``V = m v``. With the input ``x``, the output ``h``, the
    gradient ``d`` of what the outgoing weights lead to, and the slope ``s`` of the activation, the gradients are

    - of the original: ``dw = s (v d) x`` and ``dv = d h``, the same for all ``m`` units,
    - of the merged network: ``dw = s (V d) x = m s (v d) x`` and ``dV = d h``.

    So SGD, with momentum and weight decay, which are linear, goes on exactly as before if the gradient of the incoming
    weights is divided by ``m`` and that of the outgoing ones multiplied by it: ``V`` has to move ``m`` times as far as
    each ``v``. ``Merged.gradient_scale`` has these factors. It also takes units that train as one, so equal outgoing
    weights, up to the sign: others part, and the merged network cannot follow. Adam takes no notice of factors. Its
    steps for ``w`` are right without any; for ``V`` the learning rate would have to be ``m`` times as large.

    Args:
        model: the network; it stays as it is, to the last bit.
        example_inputs: what it can be called with: a tensor, a tuple of tensors, or a dict of keyword arguments.
        report: what :func:`diagnose` or a monitor has found in this model; None: look anew.
        optimizer: an optimizer over the parameters of the model, if there is one to carry on.

    Returns:
        The merged network, and what there is to know about it.

    Raises:
        ModuleNotFoundError: if torch-pruning is not installed.
        TypeError: if an argument is of the wrong type.
        ValueError: if the model cannot be copied or fails on the example inputs, or if the report or the optimizer
            belong to another model.
        MergeError: if the model returns something else at every call, so that no merge can be verified, or if the
            optimizer keeps something of which it is not known how it goes with the weights.

    Example:
        >>> import torch
        >>> from lightning_symmetry import merge_duplicates
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     for parameter in net[0].parameters():
        ...         parameter[2:] = parameter[:2]
        >>> merged = merge_duplicates(net, torch.randn(5, 3))
        >>> merged.removed, merged.parameters_before, merged.parameters_after
        ({'0': (2, 3)}, 26, 14)
        >>> parameters = dict(merged.model.named_parameters())
        >>> for name, scale in merged.gradient_scale.items():
        ...     _ = parameters[name].register_hook(lambda gradient, scale=scale: gradient * scale)
    """
    torch_pruning()
    check_module(model)
    inputs = Inputs.of(example_inputs)
    check_optimizer(optimizer, model)
    report = _checked(report, model)
    with own_surroundings():
        merging = _Merging(model, inputs)
        for layer in report.distinct_layers:
            merging.merge(layer)
        error = merging.error()
        merged = merging.finished(model)
        return Merged(
            model=merged,
            removed=merging.removed(),
            parameters_before=_num_parameters(model),
            parameters_after=_num_parameters(merged),
            error=error,
            left=merging.left,
            optimizer=None if optimizer is None else carried_over(optimizer, model, merged, merging.edits),
            gradient_scale=gradient_scales(merging.edits, _trained(merged)),
        )


class _Merging:
    """A copy of a model in which one layer after the other is merged.

    Args:
        model: the model.
        inputs: what it is called with.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model = _evaluated_copy(model)
        self._inputs = inputs
        self._original = Original.of(self._model, inputs)
        self._trial: Trial | None = None  # made when it is first needed
        # The names that reports use differ from those of the modules where a wrapper is in between.
        paths = [path for path, _ in model.named_modules()]
        self._paths = {name: path for (name, _), path in zip(readable_modules(model), paths, strict=True)}
        self._names = {path: name for name, path in self._paths.items()}
        self._removed: dict[str, set[int]] = {}  # by path: which units of the original layer are gone
        self.edits: list[Edit] = []
        self.left: dict[str, str] = {}

    def error(self) -> float:
        """How far the outputs lie from those of the original model."""
        return self._original.error_of(self._model)

    def merge(self, layer: LayerDiagnosis) -> None:
        """Merge the units of a layer, or note why not."""
        groups = [group for group in layer.groups if group.verdict.traits.is_redundant]
        if not groups:
            return
        reason = self._why_not(layer)
        if reason is None:
            reason = self._try_all(self._paths[layer.name], groups)
        if reason:
            self.left[layer.name] = reason

    def _why_not(self, layer: LayerDiagnosis) -> str | None:
        if layer.slices_of:
            return "they are slices of a parameter that no adapter knows"
        if layer.also:
            return f"the weight is tied to that of {', '.join(f'`{name}`' for name in layer.also)}"
        if layer.name not in self._paths:
            return "they are units of a part of a layer, and torch-pruning removes no single units of such a part"
        return None

    def _try_all(self, path: str, groups: Sequence[UnitGroup]) -> str:
        """Merge with mirror images, and if that changes the outputs, without. Returns why any units were left."""
        units = self._present(path, 1 + max(max(group.units) for group in groups))
        place = {unit: i for i, unit in enumerate(units)}
        reasons: list[str] = []
        for signed in _attempts(groups):
            present = [[(place[unit], sign) for unit, sign in group if unit in place] for group in signed]
            present = [group for group in present if len(group) > 1]
            if not present:
                break
            try:
                step = self._try(path, present, units)
            except NotMergedError as error:
                reasons.append(str(error))
                continue
            return "; ".join([*reasons, *step.reasons])
        return "; ".join(dict.fromkeys(reasons))

    def _try(self, path: str, groups: Sequence[Sequence[Signed]], labels: Sequence[int]) -> Step:
        candidate = copy.deepcopy(self._model)
        step = merge_units(candidate, self._inputs, path, groups, labels)
        _require_gradients(candidate)
        if self._trial is None:
            self._trial = Trial.of(self._model, self._inputs)
        self._trial.check_seen(step.num_units, readers_are_told=step.readers_are_told)
        mirrored = " with mirror images merged" if any(sign < 0 for group in groups for _, sign in group) else ""
        try:
            trial = self._trial.after(candidate, step.equal, step.edits)
        except NotMergedError as why_not:
            raise NotMergedError(str(why_not).replace("outputs are", f"outputs{mirrored} are")) from why_not
        try:
            error = self._original.error_of(candidate)
        except Exception as failure:  # a model may count on its widths anywhere
            raise NotMergedError(f"without them the model fails with {describe(failure)}") from failure
        if not error <= self._original.max_error:
            if math.isinf(error):
                raise NotMergedError("without them the outputs have other shapes, or others of them are not finite")
            raise NotMergedError(f"without them the outputs{mirrored} are others: the error is {error:.1e}")
        self._model, self._trial = candidate, trial
        self.edits += step.edits
        for name, gone in step.gone.items():
            present = self._present(name, 1 + max(gone) + len(self._removed.get(name, ())))
            self._removed.setdefault(name, set()).update(present[i] for i in gone)
        return step

    def _present(self, path: str, end: int) -> list[int]:
        """Those of the first ``end`` units of an original layer that are still there."""
        removed = self._removed.get(path, set())
        return [unit for unit in range(end) if unit not in removed]

    def removed(self) -> dict[str, tuple[int, ...]]:
        """By layer name, the units of the original layers that are gone."""
        return {self._names[path]: tuple(sorted(units)) for path, units in self._removed.items()}

    def finished(self, original: nn.Module) -> nn.Module:
        """The merged network, with the modes of the original one and the parameters frozen that are so there."""
        trained = {name: parameter.requires_grad for name, parameter in original.named_parameters()}
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(trained[name])
        for ours, theirs in zip(self._model.modules(), original.modules(), strict=True):
            ours.training = theirs.training
        return self._model


def _attempts(groups: Sequence[UnitGroup]) -> Iterator[list[list[Signed]]]:
    """Sets of units to merge, with signs: first with mirror images, where there are any, then without."""
    if any(group.mirrored for group in groups):
        yield [[(unit, -1 if unit in group.mirrored else 1) for unit in group.units] for group in groups]
    yield [
        [(unit, 1) for unit in group.units if (unit in group.mirrored) == is_mirrored]
        for group in groups
        for is_mirrored in (False, True)
    ]


def _evaluated_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that can be traced: all of its floating point parameters require a gradient."""
    try:
        twin = copy.deepcopy(model).eval()
    except Exception as error:
        raise ValueError(
            f"Expected argument `model` to be one that copy.deepcopy can copy, but it failed with {describe(error)}"
        ) from error
    _require_gradients(twin)
    return twin


def _require_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())


def _checked(report: SymmetryReport | None, model: nn.Module) -> SymmetryReport:
    """The report to go by.

    Raises:
        TypeError: if it is no report.
        ValueError: if it is one of another model.
    """
    if report is None:
        return diagnose(model)
    check_report(report, {layer.name: layer.num_units for layer in find_layers(model).layers})
    return report


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name; no hook can be registered on others."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
