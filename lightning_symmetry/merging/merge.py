"""`merge_duplicates`: the same network with fewer units."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.arguments import check_module
from lightning_symmetry.brief import brief
from lightning_symmetry.engine.diagnose import diagnose
from lightning_symmetry.merging.coupling import torch_pruning
from lightning_symmetry.merging.edits import Edit, gradient_scales, rebuilt_optimizer
from lightning_symmetry.merging.layers import Signed, Step, merge_units
from lightning_symmetry.merging.trials import Trial
from lightning_symmetry.merging.verification import Inputs, MergeError, NotMergedError, Original, describe
from lightning_symmetry.randomness import preserved_random_numbers
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
        removed: by layer name, the indices of the removed units in the original layer.
        parameters_before: number of parameters of the original network.
        parameters_after: number of parameters of the merged network.
        error: the largest relative distance ``||a - b|| / ||a||`` between their outputs, on the example inputs and on
            random ones, computed in float64 if the model runs in it.
        left: by layer name, why some groups, or parts of them, were not merged.
        optimizer: an optimizer for ``model`` that continues from the state of the given one; None without one.
        gradient_scale: by parameter name, factors for its gradient, which can be broadcast to it. With them, SGD
            continues as in the original network. Frozen parameters and factors of 1 are omitted.
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

    The first unit of each group with equal incoming weights is kept, and the outgoing weights of the others are added
    to its own: ``v_1 h + ... + v_m h = (v_1 + ... + v_m) h``. Mirror images enter with a minus sign, if the activation
    is odd. The others are then removed with all numbers that belong to them, by the dependency graph of torch-pruning.

    Each layer is merged on a copy, which is kept only if its outputs equal those of the original network: within a
    relative error of 1e-5 in float32 and 1e-12 in float64, in evaluation mode, on the example inputs and on random
    ones. The numbers of a model can hide other readers of the units. So each merge is also tried in float64 with noise
    on all parameters, in both modes and with inputs of several scales, within 1e-9. Units that code outside these runs
    may read are not merged, nor are dead units.

    The merged network does not by itself train as the original one. Let ``m`` units have the incoming weights ``w`` and
    the outgoing weights ``v``; the merged unit has ``w`` and ``V = m v``. With the input ``x``, the output ``h``, the
    gradient ``d`` with respect to ``V h``, and the slope ``s`` of the activation, the gradients are

    - of the original: ``dw = s (v d) x`` and ``dv = d h``, the same for all ``m`` units,
    - of the merged network: ``dw = s (V d) x = m s (v d) x`` and ``dV = d h``.

    SGD, momentum and weight decay are linear. They continue exactly as before if the gradient of the incoming weights
    is divided by ``m`` and the gradient of the outgoing weights multiplied by ``m``, because ``V`` has to move ``m``
    times as far as each ``v``. ``Merged.gradient_scale`` holds these factors. This requires units that train as one,
    with equal outgoing weights up to the sign; other units diverge, which the merged network cannot follow. Adam
    ignores the scale of gradients: its steps for ``w`` are right without factors, and ``V`` would need ``m`` times the
    learning rate.

    Args:
        model: the network; it is not changed.
        example_inputs: arguments for the model: a tensor, a tuple of tensors, or a dict of keyword arguments.
        report: the report of :func:`diagnose` or a monitor on this model; None: make one.
        optimizer: an optimizer over the parameters of the model; ``Merged.optimizer`` continues from its state.

    Returns:
        The merged network, with what was removed and how to continue its training.

    Raises:
        ModuleNotFoundError: if torch-pruning is not installed.
        TypeError: if an argument has the wrong type.
        ValueError: if the model cannot be copied or fails on the example inputs, or if the report or the optimizer
            belong to another model.
        MergeError: if the model's outputs are not reproducible, so that no merge can be verified, or if the optimizer
            has a state that cannot be merged.

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
    _check_optimizer(optimizer, model)
    if report is None:
        report = diagnose(model)
    else:
        check_report(report, {layer.name: layer.num_units for layer in find_layers(model).layers})
    # Gradients are needed, even if the caller is in inference mode.
    with preserved_random_numbers(), torch.inference_mode(False):
        merging = _Merging(model, inputs)
        for layer in report.distinct_layers:
            merging.merge(layer)
        error = merging.error()
        merged = merging.finished(model)
        return Merged(
            model=merged,
            removed=merging.removed(),
            parameters_before=sum(map(torch.numel, model.parameters())),
            parameters_after=sum(map(torch.numel, merged.parameters())),
            error=error,
            left=merging.left,
            optimizer=None if optimizer is None else rebuilt_optimizer(optimizer, model, merged, merging.edits),
            gradient_scale=gradient_scales(merging.edits, merged),
        )


class _Merging:
    """A copy of a model whose layers are merged one after the other."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model = _evaluated_copy(model)
        self._inputs = inputs
        self._original = Original.of(self._model, inputs)
        self._trial: Trial | None = None  # made when it is first needed
        # Reports omit the names of wrappers from the paths of modules.
        paths = [path for path, _ in model.named_modules()]
        self._paths = {name: path for (name, _), path in zip(readable_modules(model), paths, strict=True)}
        self._names = {path: name for name, path in self._paths.items()}
        self._removed: dict[str, set[int]] = {}  # by path, the removed units of the original layer
        self.edits: list[Edit] = []
        self.left: dict[str, str] = {}

    def error(self) -> float:
        """Return the relative error of the outputs."""
        return self._original.error_of(self._model)

    def merge(self, layer: LayerDiagnosis) -> None:
        """Merge the units of a layer, or record why not."""
        groups = [group for group in layer.groups if group.verdict.traits.is_redundant]
        if not groups:
            return
        if layer.slices_of:
            reason = "they are slices of a parameter without an adapter"
        elif layer.also:
            reason = f"the weight is tied to that of {', '.join(f'`{name}`' for name in layer.also)}"
        elif layer.name not in self._paths:
            reason = "they are units of a part of a layer, which torch-pruning cannot remove one by one"
        else:
            reason = self._try_all(self._paths[layer.name], groups)
        if reason:
            self.left[layer.name] = reason

    def _try_all(self, path: str, groups: Sequence[UnitGroup]) -> str:
        """Merge with mirror images; if that changes the outputs, without. Return why units were left."""
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
                has_mirror_images = any(sign < 0 for group in present for _, sign in group)
                action = "merging mirror images" if has_mirror_images else "removing them"
                reasons.append(str(error).replace("removing them", action))
                continue
            reasons += step.reasons
            break
        return "; ".join(dict.fromkeys(reasons))

    def _try(self, path: str, groups: Sequence[Sequence[Signed]], labels: Sequence[int]) -> Step:
        candidate = copy.deepcopy(self._model)
        step = merge_units(candidate, self._inputs, path, groups, labels)
        _require_gradients(candidate)
        if self._trial is None:
            self._trial = Trial.of(self._model, self._inputs)
        self._trial.check_paths(step.num_units, knows_all_readers=step.knows_all_readers)
        trial = self._trial.after(candidate, step.equal, step.edits)
        self._original.check(candidate)
        self._model, self._trial = candidate, trial
        self.edits += step.edits
        for name, gone in step.gone.items():
            present = self._present(name, 1 + max(gone) + len(self._removed.get(name, ())))
            self._removed.setdefault(name, set()).update(present[i] for i in gone)
        return step

    def _present(self, path: str, end: int) -> list[int]:
        """Return which of the first ``end`` units of an original layer still exist."""
        removed = self._removed.get(path, set())
        return [unit for unit in range(end) if unit not in removed]

    def removed(self) -> dict[str, tuple[int, ...]]:
        """Return the removed units of the original layers, by layer name."""
        return {self._names[path]: tuple(sorted(units)) for path, units in self._removed.items()}

    def finished(self, original: nn.Module) -> nn.Module:
        """Return the merged network, with the modes and the frozen parameters of the original one."""
        trained = {name: parameter.requires_grad for name, parameter in original.named_parameters()}
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(trained[name])
        for ours, theirs in zip(self._model.modules(), original.modules(), strict=True):
            ours.training = theirs.training
        return self._model


def _attempts(groups: Sequence[UnitGroup]) -> Iterator[list[list[Signed]]]:
    """Yield the sets of units to merge, with signs: first with mirror images, if there are any, then without."""
    if any(group.mirrored for group in groups):
        yield [[(unit, -1 if unit in group.mirrored else 1) for unit in group.units] for group in groups]
    yield [
        [(unit, 1) for unit in group.units if (unit in group.mirrored) == is_mirrored]
        for group in groups
        for is_mirrored in (False, True)
    ]


def _evaluated_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, whose floating point parameters require a gradient so that it can be traced."""
    try:
        twin = copy.deepcopy(model).eval()
    except Exception as error:
        text = f"Expected argument `model` to work with copy.deepcopy, but it failed with {describe(error)}"
        raise ValueError(text) from error
    _require_gradients(twin)
    return twin


def _require_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())


def _check_optimizer(optimizer: object, model: nn.Module) -> None:
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"Expected argument `optimizer` to be a torch.optim.Optimizer or None but got {brief(optimizer)}."
        )
    known = set(map(id, model.parameters()))
    strange = sum(id(parameter) not in known for group in optimizer.param_groups for parameter in group["params"])
    if strange:
        raise ValueError(
            "Expected argument `optimizer` to be an optimizer over the parameters of `model` "
            f"but {strange} of its parameters belong to no module of it."
        )
