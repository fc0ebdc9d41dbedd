"""`break_symmetry`: different weights for equal units."""

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
from lightning_symmetry.repair import drawing, planning, writing
from lightning_symmetry.repair.outgoing import clear, reading_of_dead
from lightning_symmetry.repair.planning import Drawing, Left, Plan
from lightning_symmetry.repair.writing import CannotChangeError
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.naming import readable_modules, readable_parameters
from lightning_symmetry.units.readers import Reader, ReadingGraph
from lightning_symmetry.verdicts.diagnoses import CopyGroup
from lightning_symmetry.verdicts.report import SymmetryReport, check_report
from lightning_symmetry.verdicts.verdict import Verdict

Method = Literal["auto", "reinit", "noise"]

_STD = 0.02  # of the initial embeddings of BERT, GPT-2 and ViT


@dataclass(frozen=True)
class Change:
    """A change of some units of a layer, or of a whole module.

    Attributes:
        layer: name of the layer, or of a whole module that was a copy.
        units: sorted indices of the units whose incoming weights are new; empty for a whole module.
        method: ``"reinit"`` if they were drawn anew, ``"noise"`` if noise was added.
        reason: why, such as "they were copies of unit 0".
        outgoing: names of the layers whose weights for these units are zero now, so that recycled dead units do not
            change the network's function.
    """

    layer: str
    units: tuple[int, ...]
    method: Literal["reinit", "noise"]
    reason: str
    outgoing: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the change as a sentence.

        >>> print(Change("fc1", (1, 2, 3), "reinit", "they were copies of unit 0"))
        fc1: 3 units, {1, 2, 3}, drawn anew: they were copies of unit 0.
        """
        done = "drawn anew" if self.method == "reinit" else "given a little noise"
        outgoing = f" Their outgoing weights in {', '.join(self.outgoing)} are zero now." if self.outgoing else ""
        return f"{planning.name_units(self.layer, self.units)} {done}: {self.reason}.{outgoing}"


def break_symmetry(
    model: nn.Module,
    report: SymmetryReport,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    method: Method = "auto",
    generator: Generator | None = None,
) -> list[Change]:
    """Give locked and frozen units different weights, and recycle dead units.

    - Units whose weights are all one number, zero or not, get a default initialisation of the layer type.
    - Of copies and mirror images, the first unit of each group is kept; the others get a row in a random direction,
      with the norm of their old row.
    - Zero weights that block the gradient of frozen units get a default initialisation.
    - Dead units get a default initialisation, and the weights that read them become zero, as in ReDo (Sokar et al.
      2023, arXiv 2302.12902): the network's function is unchanged, and the units can train again. Units are left if
      their readers are unknown, or if they may output a constant other than zero, as behind a saturated tanh.
      ``method="reinit"`` recycles these, too, and changes the function.
    - Of whole modules that are copies, the first is kept; the others get noise, or a default initialisation with
      ``method="reinit"``.

    Not changed are groups that break by themselves, units in lockstep (their weights differ), and groups that a report
    of several checks leaves open. After a single check, as in a report of :func:`lightning_symmetry.diagnose`, all
    equal units are separated, except zeros without equal gradients, which may be on purpose. Layers excluded from the
    report, and parameters with ``requires_grad=False``, are never changed.

    The gradients of replaced numbers become zero, and their optimizer states are reset; other states, such as step
    counts, are kept. The state of LBFGS, which spans all parameters, is reset completely. If several processes each
    have the whole model, as under DDP, call this on all of them with the same arguments: all draw the same numbers.

    Args:
        model: the model; it is changed in place.
        report: a report on the model.
        optimizer: the optimizer of the model, or several.
        method: ``"auto"``: as above; ``"reinit"``: no noise, and new rows for all dead units; ``"noise"``: units and
            modules get noise of 0.01 times the root mean square of their weights, so that copies compute nearly the
            same as before. Dead units, and zero weights that block others, are always drawn anew.
        generator: source of random numbers; None: a generator seeded with a checksum of the weights to be changed, so
            that the same call on the same model has the same result. The global generators are never used.

    Returns:
        The changes, in the order of the model; empty if there was nothing to do.

    Warns:
        UserWarning: if units named by the report were left as they are; the text says which, and why.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``method`` is unknown, the report belongs to another model, or a layer cannot be changed because
            it is sharded over several processes, or has a parametrization without ``right_inverse``. The model is then
            unchanged.

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
    repair = repaired(model, report, optimizer, method, generator)
    if repair.left:
        warnings.warn(" ".join(map(str, repair.left)), stacklevel=2)
    return repair.changes


class Repair(NamedTuple):
    """The result of :func:`repaired`."""

    changes: list[Change]  # the changes, in the order of the model
    left: list[Left]  # units and modules named by the report that were not changed, and why


def repaired(
    model: nn.Module,
    report: SymmetryReport,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    method: Method = "auto",
    generator: Generator | None = None,
) -> Repair:
    """Break a symmetry like :func:`break_symmetry`, but return what was left instead of warning about it."""
    check_module(model)
    check_choice("method", method, get_args(Method))
    if generator is not None and not (isinstance(generator, Generator) and generator.device.type == "cpu"):
        raise TypeError(
            f"Expected argument `generator` to be a torch.Generator on the CPU or None but got {brief(generator)}."
        )
    optimizers = _optimizers_of(optimizer)
    layers = {layer.name: layer for layer in find_layers(model).layers}
    check_report(report, {name: layer.num_units for name, layer in layers.items()})
    modules = dict(readable_modules(model))
    parameters = {name: parameter for name, _, parameter in readable_parameters(model)}
    plans, left = planning.plans_for(report, layers, only_noise=method == "noise")
    copies = [group for group in report.copies if planning.is_to_be_broken(group.verdict, group.first_step)]
    owners = {plan.layer.name: _owner_of(plan.layer, modules) for plan in plans}
    for plan in plans:
        writing.check_writable(plan.layer, owners[plan.layer.name])
    of_parameters = [group for group in copies if set(group.modules) <= parameters.keys()]
    copies = [group for group in copies if group not in of_parameters]
    _check_modules(copies, modules)
    zero = [group for group in (*copies, *of_parameters) if _is_zero(group, modules, parameters)]
    left += [Left(name, (), planning.ZERO_ON_PURPOSE) for group in zero for name in group.modules[1:]]
    plans, readers = _with_readers(model, plans, owners, left, keeps_function=method != "reinit")
    if generator is None:
        generator = Generator().manual_seed(_checksum(plans))
    changes = []
    fresh: dict[int, nn.Module | None] = {}
    for plan in plans:
        owner = owners[plan.layer.name]
        if plan.drawing is not Drawing.AT_SCALE and id(owner) not in fresh:
            fresh[id(owner)] = drawing.fresh_copy(owner, generator)
        _change_units(plan, owner, fresh.get(id(owner)), generator, optimizers)
        of_dead = readers.get(plan.layer.name, ()) if plan.clear_outgoing else ()
        outgoing = clear(of_dead, torch.tensor(plan.units), optimizers)
        done: Literal["reinit", "noise"] = "noise" if plan.drawing is Drawing.NOISE else "reinit"
        changes.append(Change(plan.layer.name, plan.units, done, plan.reason, outgoing))
    for group in (group for group in (*copies, *of_parameters) if group not in zero):
        if group in of_parameters:
            changes += _separate_parameters(group, parameters, generator, optimizers)
        else:
            changes += _separate_modules(group, modules, generator, optimizers, reinit=method == "reinit")
    return Repair(changes, left)


def _with_readers(
    model: nn.Module, plans: Sequence[Plan], owners: dict[str, nn.Module], left: list[Left], *, keeps_function: bool
) -> tuple[list[Plan], dict[str, list[Reader]]]:
    """Return the plans, and the readers of dead units by layer name.

    Plans that may change the network's function are moved to ``left``. Without ``keeps_function`` they remain, with a
    reason that says so.
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
            tail = 'so new rows might change the network\'s outputs; `method="reinit"` draws them nevertheless'
            left.append(Left(name, plan.units, f"they are dead, but {reading.why_not}, {tail}"))
        else:
            reason = f"{plan.reason}; {reading.why_not}, so this may have changed the network's outputs"
            followed.append(replace(plan, reason=reason, clear_outgoing=False))
    return followed, found


def _is_zero(group: CopyGroup, modules: dict[str, nn.Module], parameters: dict[str, nn.Parameter]) -> bool:
    """Return whether the parameters of a group, or its modules' weights, are zero, and only one check was made."""
    if group.verdict is not Verdict.DUPLICATE:
        return False
    name = group.modules[0]
    own = [parameters[name]] if name in parameters else [p for p in modules[name].parameters() if p.ndim > 1]
    return not any(each.detach().any() for each in own)


def _change_units(
    plan: Plan, owner: nn.Module, fresh: nn.Module | None, generator: Generator, optimizers: Sequence[Optimizer]
) -> None:
    units = torch.tensor(plan.units)
    for tensor in filter(planning.is_trained, plan.layer.all_tensors()):
        if plan.drawing is Drawing.AT_SCALE:
            rows = drawing.rows_at_scale(tensor, units, generator)
        else:
            name = next((name for name, own in owner._parameters.items() if own is tensor.weights), None)
            if writing.is_computed(tensor):
                name = writing.name_of_computed(owner, tensor)
            rows = drawing.fresh_rows(plan.layer, tensor, fresh, name, units, generator)
        if plan.drawing is Drawing.NOISE:
            if drawing.is_number_each(tensor):
                continue
            old = drawing.current_rows(tensor, units)
            # Zeros have no scale; use that of the default initialisation.
            rows = drawing.rows_with_noise(old, old if old.any() else rows, generator)
        writing.write_rows(tensor, units, rows, owner, optimizers)


def _separate_modules(
    group: CopyGroup,
    modules: dict[str, nn.Module],
    generator: Generator,
    optimizers: Sequence[Optimizer],
    *,
    reinit: bool,
) -> Iterator[Change]:
    """Change the weights of all modules of a group but the first."""
    for name in group.modules[1:]:
        for module in modules[name].modules():
            has_weights = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
            fresh = drawing.fresh_copy(module, generator) if reinit and has_weights else None
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim < 2 or not parameter.requires_grad:  # biases, and the scales of norms
                    continue
                if fresh is None:
                    old = parameter.detach().cpu()
                    rows = drawing.rows_with_noise(old, old, generator)
                else:
                    rows = cast("Tensor", fresh._parameters[own])
                writing.write_numbers(parameter, torch.arange(parameter.numel()), rows.flatten(), optimizers)
        yield Change(name, (), "reinit" if reinit else "noise", f"it was a copy of {group.modules[0]}")


def _separate_parameters(
    group: CopyGroup, parameters: dict[str, nn.Parameter], generator: Generator, optimizers: Sequence[Optimizer]
) -> Iterator[Change]:
    """Change the numbers of all parameters of a group but the first."""
    for name in group.modules[1:]:
        if not parameters[name].requires_grad:
            continue
        numbers = parameters[name].detach().to("cpu", copy=True).flatten()
        if numbers.any():
            numbers = drawing.rows_with_noise(numbers[None], numbers[None], generator)[0]
        else:  # zeros have no scale
            numbers = numbers.normal_(std=_STD, generator=generator)
        writing.write_numbers(parameters[name], torch.arange(len(numbers)), numbers, optimizers)
        yield Change(name, (), "noise", f"it was equal to {group.modules[0]}")


def _owner_of(layer: Layer, modules: dict[str, nn.Module]) -> nn.Module:
    """Return the module that owns a layer; if modules share its parameters, the one that the layer is named after."""
    own = set(layer.identity)
    holders = [
        (name, module) for name, module in modules.items() if not own.isdisjoint(map(id, _own_parameters(module)))
    ]
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
    """Return a checksum of the weights to be changed, the same on every process and device."""
    checksum = 0
    for plan in plans:
        rows = drawing.current_rows(plan.layer.tensors[0], torch.tensor(plan.units)).float()
        checksum = zlib.crc32(rows.numpy().tobytes(), zlib.crc32(plan.layer.name.encode(), checksum))
    return checksum


def _optimizers_of(optimizer: object) -> list[Optimizer]:
    several = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for one in several:
        if not isinstance(one, Optimizer) and not is_zero_optimizer(one):  # sharded models are refused later
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
