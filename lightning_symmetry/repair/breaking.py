"""Break a symmetry: give units that are equal weights of their own."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from lightning_symmetry.arguments import check_choice, check_module
from lightning_symmetry.brief import brief
from lightning_symmetry.ranks.pieces import is_sharded
from lightning_symmetry.ranks.zero import is_zero_optimizer
from lightning_symmetry.repair.drawing import (
    current_rows,
    fresh_copy,
    fresh_rows,
    is_number_each,
    rows_at_scale,
    rows_with_noise,
)
from lightning_symmetry.repair.outgoing import clear, reading_of_dead
from lightning_symmetry.repair.planning import (
    ZERO_ON_PURPOSE,
    Drawing,
    Left,
    Plan,
    is_to_be_broken,
    is_trained,
    plans_for,
)
from lightning_symmetry.repair.writing import (
    CannotChangeError,
    check_writable,
    is_computed,
    name_of_computed,
    put,
    write,
)
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.layers import Incoming, Layer
from lightning_symmetry.units.naming import readable_modules, readable_parameters
from lightning_symmetry.units.readers import Reader, ReadingGraph
from lightning_symmetry.verdicts.diagnoses import CopyGroup
from lightning_symmetry.verdicts.report import SymmetryReport, check_report
from lightning_symmetry.verdicts.tables import describe_groups
from lightning_symmetry.verdicts.verdict import Verdict

Method = Literal["auto", "reinit", "noise"]

# The standard deviation from which BERT, GPT-2 and ViT draw their embeddings.
_STD = 0.02


@dataclass(frozen=True)
class Change:
    """What has been changed in a model.

    Attributes:
        layer: name of the layer, or of a whole module that was a copy.
        units: sorted indices of the units whose incoming weights are new; empty for a whole module.
        method: ``"reinit"`` if they were drawn anew, ``"noise"`` if noise was added.
        reason: what they were.
        outgoing: names of the layers whose weights from these units are zero now, so that a dead unit that comes to
            life does not disturb what the network computes.
    """

    layer: str
    units: tuple[int, ...]
    method: Literal["reinit", "noise"]
    reason: str
    outgoing: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The change as a sentence.

        >>> print(Change("fc1", (1, 2, 3), "reinit", "they were copies of unit 0"))
        fc1: 3 units, {1, 2, 3}, drawn anew: they were copies of unit 0.
        """
        done = "drawn anew" if self.method == "reinit" else "given a little noise"
        outgoing = f" Their outgoing weights in {', '.join(self.outgoing)} are zero now." if self.outgoing else ""
        several = f"unit {self.units[0]}" if len(self.units) == 1 else describe_groups([self.units], None)
        units = f": {several}," if self.units else ""
        return f"{self.layer}{units} {done}: {self.reason}.{outgoing}"


def break_symmetry(
    model: nn.Module,
    report: SymmetryReport,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    method: Method = "auto",
    generator: Generator | None = None,
) -> list[Change]:
    """Give the units that a report calls locked or frozen weights of their own, and recycle dead ones.

    - Units all of whose weights are one number, zero or not, are drawn anew as the layer type does by default.
    - Of copies and mirror images, the first unit of each group stays as it is; the others get a row in a random
      direction, as long as the one that they had.
    - Zero weights behind frozen units, which let no gradient through, are drawn anew as well.
    - Dead units get a fresh row, and the weights that read them become zero, as in ReDo (Sokar et al. 2023, arXiv
      2302.12902): the network computes the same, and they can train again. They stay as they are where it cannot be
      told which weights read them, or where they may put out another constant than zero, as behind a saturated tanh;
      unless ``method="reinit"`` asks for fresh rows at the price of another function.
    - Of whole modules that are copies, the first stays as it is; the others get noise, or are drawn anew with
      ``method="reinit"``.

    Groups that break by themselves, and units in lockstep, whose own weights differ, stay as they are. So do those that
    a report of several checks has not decided; in one of a single look, as :func:`lightning_symmetry.diagnose` gives
    it, all units that are equal are parted, but for zeros without equal gradients, which may be there on purpose. What
    ``exclude`` left out of the report is left alone, and parameters with ``requires_grad=False`` are never written.

    Gradients of numbers that are gone become zero, and what an optimizer remembers of them becomes what it is before
    the first step; the rest of its state, such as the number of steps, is kept. LBFGS, whose memory is of all
    parameters together, forgets all of it. With several processes that each have the whole model, as under DDP, call
    this on all of them with the same arguments: all of them draw the same.

    Args:
        model: the model; it is changed in place.
        report: what is known of it.
        optimizer: what updates it, or several.
        method: ``"auto"``: as above; ``"reinit"``: no noise, and fresh rows for all dead units; ``"noise"``: units and
            modules get noise of 0.01 times the root mean square of their weights, so that copies compute nearly what
            they did. Dead units, and zero weights that block others, are drawn anew in any case.
        generator: what the numbers are drawn from; None: one that is seeded with a checksum of the weights in question,
            so that the same call on the same model does the same. The global generators are never used.

    Returns:
        What has been changed, in the order of the model; empty if there was nothing to do.

    Warns:
        UserWarning: if units that the report names were left as they are; the text says which, and why.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if ``method`` is unknown, the report is one of another model, or a layer in question cannot be
            changed: it is sharded over several processes, or parametrized in a way through which no weight can be
            assigned. The model is then as it was.

    Example:
        >>> import torch
        >>> from lightning_symmetry import break_symmetry, diagnose
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = torch.nn.init.constant_(net[0].weight, 0.5), torch.nn.init.zeros_(net[0].bias)
        >>> for change in break_symmetry(net, diagnose(net)):
        ...     print(change)
        0: 8 units, {0, 1, 2, 3, 4, 5, 6, 7}, drawn anew: all of their weights were 0.5.
        >>> diagnose(net).layers["0"].effective_width
        8
    """
    repair = repaired(model, report, optimizer=optimizer, method=method, generator=generator)
    if repair.left:
        warnings.warn(" ".join(map(str, repair.left)), stacklevel=2)
    return repair.changes


class Repair(NamedTuple):
    """What :func:`repaired` did.

    Attributes:
        changes: what has been changed, in the order of the model.
        left: units and modules that the report names and that stay as they are, and why.
    """

    changes: list[Change]
    left: list[Left]


def repaired(
    model: nn.Module,
    report: SymmetryReport,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    method: Method = "auto",
    generator: Generator | None = None,
) -> Repair:
    """Do what :func:`break_symmetry` does, and return what was left instead of a warning."""
    check_module(model)
    check_choice("method", method, get_args(Method))
    _check_generator(generator)
    optimizers = _optimizers_of(optimizer)
    layers = {layer.name: layer for layer in find_layers(model).layers}
    check_report(report, {name: layer.num_units for name, layer in layers.items()})
    modules = dict(readable_modules(model))
    parameters = {name: parameter for name, _, parameter in readable_parameters(model)}
    plans, left = plans_for(report, layers, only_noise=method == "noise")
    copies = [group for group in report.copies if is_to_be_broken(group.verdict, group.first_step)]
    owners = {plan.layer.name: _owner_of(plan.layer, modules) for plan in plans}
    for plan in plans:
        check_writable(plan.layer, owners[plan.layer.name])
    of_parameters = [group for group in copies if set(group.modules) <= parameters.keys()]
    copies = [group for group in copies if group not in of_parameters]
    _check_modules(copies, modules)
    copies, of_parameters = _without_zeros(copies, of_parameters, modules, parameters, left)
    plans, readers = _with_readers(model, plans, owners, left, keeps_function=method != "reinit")
    if generator is None:
        generator = Generator().manual_seed(_checksum(plans))
    changes = []
    fresh: dict[int, nn.Module | None] = {}
    for plan in plans:
        owner = owners[plan.layer.name]
        if plan.drawing is not Drawing.AT_SCALE and id(owner) not in fresh:
            fresh[id(owner)] = fresh_copy(owner, generator)
        _change_units(plan, owner, fresh.get(id(owner)), generator, optimizers)
        of_dead = readers.get(plan.layer.name, ()) if plan.clear_outgoing else ()
        outgoing = clear(of_dead, torch.tensor(plan.units), optimizers)
        done: Literal["reinit", "noise"] = "noise" if plan.drawing is Drawing.NOISE else "reinit"
        changes.append(Change(plan.layer.name, plan.units, done, plan.reason, outgoing))
    for group in copies:
        changes += _part_modules(group, modules, generator, optimizers, reinit=method == "reinit")
    for group in of_parameters:
        changes += _part_parameters(group, parameters, generator, optimizers)
    return Repair(changes, left)


def _with_readers(
    model: nn.Module,
    plans: Sequence[Plan],
    owners: dict[str, nn.Module],
    left: list[Left],
    *,
    keeps_function: bool,
) -> tuple[list[Plan], dict[str, list[Reader]]]:
    """Find out what reads dead units, and leave those whose fresh rows would change the function.

    Args:
        model: the model.
        plans: what is to happen.
        owners: the modules of the layers, by the names of these.
        left: units that stay as they are are added to it.
        keeps_function: whether units stay if their fresh rows would change the function; else the reason says so.

    Returns:
        The plans to follow, and by the name of a layer the layers that read its dead units.
    """
    graph = ReadingGraph(model) if any(plan.clear_outgoing for plan in plans) else None
    followed: list[Plan] = []
    found: dict[str, list[Reader]] = {}
    for plan in plans:
        if graph is None or not plan.clear_outgoing:
            followed.append(plan)
            continue
        name = plan.layer.name
        reading = reading_of_dead(graph, owners[name], plan.layer, torch.tensor(plan.units))
        if not reading.why_not:
            followed.append(plan)
            found[name] = reading.readers
        elif reading.is_alive:
            left.append(Left(name, plan.units, f"they have no gradient, but {reading.why_not}"))
        elif keeps_function:
            tail = 'so new rows might change what the network computes; `method="reinit"` draws them all the same'
            left.append(Left(name, plan.units, f"they are dead, but {reading.why_not}, {tail}"))
        else:
            reason = f"{plan.reason}; {reading.why_not}, so this may have changed what the network computes"
            followed.append(replace(plan, reason=reason, clear_outgoing=False))
    return followed, found


def _without_zeros(
    copies: Sequence[CopyGroup],
    of_parameters: Sequence[CopyGroup],
    modules: dict[str, nn.Module],
    parameters: dict[str, nn.Parameter],
    left: list[Left],
) -> tuple[list[CopyGroup], list[CopyGroup]]:
    """Return the groups without those that a single look has seen to be zero, which are added to ``left``."""

    def is_zero(name: str) -> bool:
        own = [parameters[name]] if name in parameters else modules[name].parameters()
        return not any(each.detach().any() for each in own if each.ndim > 1 or name in parameters)

    zero = [
        group for group in (*copies, *of_parameters) if group.verdict is Verdict.DUPLICATE and is_zero(group.modules[0])
    ]
    left += [Left(name, (), ZERO_ON_PURPOSE) for group in zero for name in group.modules[1:]]
    return [each for each in copies if each not in zero], [each for each in of_parameters if each not in zero]


def _change_units(
    plan: Plan, owner: nn.Module, fresh: nn.Module | None, generator: Generator, optimizers: Sequence[Optimizer]
) -> None:
    units = torch.tensor(plan.units)
    for tensor in filter(is_trained, plan.layer.all_tensors()):
        if plan.drawing is Drawing.AT_SCALE:
            rows = rows_at_scale(tensor, units, generator)
        else:
            rows = fresh_rows(plan.layer, tensor, fresh, _name_of(tensor, owner), units, generator)
        if plan.drawing is Drawing.NOISE:
            if is_number_each(tensor):
                continue
            old = current_rows(tensor, units)
            # What is zero has no scale of its own.
            rows = rows_with_noise(old, old if old.any() else rows, generator)
        write(tensor, units, rows, owner, optimizers)


def _name_of(tensor: Incoming, owner: nn.Module) -> str | None:
    """The name of a tensor in the module that it belongs to."""
    if is_computed(tensor):
        return name_of_computed(owner, tensor)
    return next((name for name, parameter in owner._parameters.items() if parameter is tensor.weights), None)


def _part_modules(
    group: CopyGroup,
    modules: dict[str, nn.Module],
    generator: Generator,
    optimizers: Sequence[Optimizer],
    *,
    reinit: bool,
) -> Iterator[Change]:
    """Give all modules of a group but the first weights of their own."""
    for name in group.modules[1:]:
        for part in modules[name].modules():
            fresh = fresh_copy(part, generator) if reinit and _has_weights(part) else None
            for own, parameter in part.named_parameters(recurse=False):
                if parameter.ndim < 2 or not parameter.requires_grad:  # biases, and the scales of norms
                    continue
                rows = parameter.detach().to("cpu", copy=True)
                if fresh is None:
                    rows = rows_with_noise(rows, rows, generator)
                else:
                    rows = cast("Tensor", fresh._parameters[own])
                put(parameter, torch.arange(parameter.numel()), rows.flatten(), optimizers)
        yield Change(name, (), "reinit" if reinit else "noise", f"it was a copy of {group.modules[0]}")


def _part_parameters(
    group: CopyGroup, parameters: dict[str, nn.Parameter], generator: Generator, optimizers: Sequence[Optimizer]
) -> Iterator[Change]:
    """Give all parameters of a group but the first numbers of their own."""
    for name in group.modules[1:]:
        if not parameters[name].requires_grad:
            continue
        numbers = parameters[name].detach().to("cpu", copy=True).flatten()
        if numbers.any():
            numbers = rows_with_noise(numbers[None], numbers[None], generator)[0]
        else:  # what is zero has no scale of its own
            numbers = numbers.normal_(std=_STD, generator=generator)
        put(parameters[name], torch.arange(len(numbers)), numbers, optimizers)
        yield Change(name, (), "noise", f"it was equal to {group.modules[0]}")


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _owner_of(layer: Layer, modules: dict[str, nn.Module]) -> nn.Module:
    """The module that a layer, or a part of it, belongs to."""
    own = set(layer.identity)
    holders = [
        (name, module) for name, module in modules.items() if not own.isdisjoint(map(id, _own_parameters(module)))
    ]
    # Of several modules that share a parameter, the one that the layer is called by.
    named = [module for name, module in holders if layer.name == name or layer.name.startswith(f"{name}.")]
    if not holders:
        raise CannotChangeError(
            f"Expected the parameters of layer {layer.name!r} to belong to a module but they do not."
        )
    return named[-1] if named else holders[0][1]


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from module.parameters(recurse=False)
    if is_parametrized(module):
        yield from cast("nn.Module", module.parametrizations).parameters()


def _checksum(plans: Sequence[Plan]) -> int:
    """A number that depends on the weights that are to be changed, the same on every process and device."""
    checksum = 0
    for plan in plans:
        rows = current_rows(plan.layer.tensors[0], torch.tensor(plan.units)).float()
        checksum = zlib.crc32(rows.numpy().tobytes(), zlib.crc32(plan.layer.name.encode(), checksum))
    return checksum


def _check_generator(generator: object) -> None:
    if generator is not None and not (isinstance(generator, Generator) and generator.device.type == "cpu"):
        raise TypeError(
            f"Expected argument `generator` to be a torch.Generator on the CPU or None but got {brief(generator)}."
        )


def _optimizers_of(optimizer: object) -> list[Optimizer]:
    several = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for one in several:
        if not isinstance(one, Optimizer) and not is_zero_optimizer(one):  # which nothing is written for
            raise TypeError(
                "Expected argument `optimizer` to be a torch.optim.Optimizer, a sequence of them or None but got "
                f"{brief(optimizer)}."
            )
    return cast("list[Optimizer]", several)


def _check_modules(copies: Sequence[CopyGroup], modules: dict[str, nn.Module]) -> None:
    for name in (name for group in copies for name in group.modules[1:]):
        if name not in modules:
            raise CannotChangeError(f"Expected the module {name!r} of the report in this model but it has none.")
        if any(is_sharded(parameter) for parameter in modules[name].parameters()):
            raise CannotChangeError(
                f"Expected module {name!r} to be here in full but it is sharded. Break the symmetry before the model "
                "is sharded, or of a checkpoint."
            )
