"""Whole modules that are exact copies of one another, such as the experts or branches of a network.

Equal parameters that one module holds side by side, such as tokens in a list, are found in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.modules import class_of, modules_of, named_parameters_of, parameters_of
from lightning_symmetry.ranks.flattening import flattened_modules
from lightning_symmetry.ranks.pieces import Piece, is_sharded, part_of_rows
from lightning_symmetry.ranks.sharded import matrix_of
from lightning_symmetry.ranks.sketches import equal_rows, first_numbers
from lightning_symmetry.ranks.team import Team
from lightning_symmetry.units.layers import Layer, check_tensor, is_trained, readable_gradient, real_rows
from lightning_symmetry.units.naming import readable_modules, readable_parameters
from lightning_symmetry.units.updates import Updates

# Modules are compared in full only if the first numbers of one of their parameters agree.
_HEAD_LENGTH = 16
_Members = Sequence[tuple[str, nn.Module]]
# Single parameters are compared like modules.
_Holder = nn.Module | nn.Parameter
_HolderT = TypeVar("_HolderT", nn.Module, nn.Parameter)


class Numbers(Protocol):
    """Access to the numbers of parameters that are not in memory."""

    def head(self, parameter: Tensor) -> list[float]:
        """Return the first few numbers of a parameter."""

    def digest(self, parameter: Tensor) -> object:
        """Return a hashable value that is equal for parameters of one shape with equal numbers."""

    def is_constant(self, parameter: Tensor) -> bool:
        """Return whether all numbers of a parameter are equal."""


@dataclass(frozen=True)
class Copies:
    """Modules of one class with equal parameters: a matrix with a row per module, used like a :class:`Layer`.

    The other attributes of a layer have fixed values: modules form one block and have no mirror images, and their zero
    gradients are no evidence, since modules such as experts may be unused for long.
    """

    row_names: tuple[str, ...]  # names of the modules, in the order of the model
    modules: tuple[_Holder, ...]  # the modules, or single parameters
    blocks: ClassVar[int] = 1
    also: ClassVar[tuple[str, ...]] = ()
    can_freeze: ClassVar[bool] = False
    dies_as_a_whole: ClassVar[bool] = False
    slices_of: ClassVar[str] = ""
    odd_gates: ClassVar[None] = None
    is_computed: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The names of all modules, joined."""
        return ", ".join(self.row_names)

    @property
    def are_parameters(self) -> bool:
        """Whether the rows are single parameters."""
        return issubclass(type(self.modules[0]), Tensor)

    @property
    def num_units(self) -> int:
        """Number of modules."""
        return len(self.modules)

    @property
    def fan_in(self) -> int:
        """Number of parameters of one module."""
        return self.weights().width

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(_parameters_of(self.modules[0])).device

    @cached_property
    def identity(self) -> tuple[int, ...]:
        """The identities (``id``) of all parameters."""
        return tuple(map(id, self.originals))

    def weights(self) -> Rows:
        """Return a row per module: all of its parameters, flattened."""
        columns = zip(*(_parameters_of(module) for module in self.modules), strict=True)
        return matrix_of([[part_of_rows(parameter, _as_row) for parameter in column] for column in columns])

    def gradients(self, trained: Set[int] | None = None) -> Rows | None:
        """Return a row per module: the gradients of the parameters that are trained in all modules.

        ``trained`` is as for :meth:`Layer.gradients`. Return None if no parameter is trained, or if a trained one has
        no readable gradient.
        """
        pieces: list[list[Tensor | Piece]] = []
        for column in zip(*(_parameters_of(module) for module in self.modules), strict=True):
            if not all(is_trained(parameter, trained) for parameter in column):
                continue
            gradients = _gradients_side_by_side(column)
            if gradients is None:
                return None
            pieces.append([part_of_rows(gradient, _as_row) for gradient in gradients])
        return matrix_of(pieces) if pieces else None

    @cached_property
    def originals(self) -> tuple[Tensor, ...]:
        """All parameters of all modules."""
        return tuple(parameter for module in self.modules for parameter in _parameters_of(module))

    def is_trained_by(self, trained: Set[int]) -> bool:
        """Return whether any parameter of the modules has one of these identities (``id``)."""
        return not trained.isdisjoint(self.identity)

    def recurrent_rows(self) -> None:
        """Return None: modules have no recurrent weights between them."""

    def computed_rows(self) -> Rows:
        """Return :meth:`weights`."""
        return self.weights()

    def parity(self) -> None:
        """Return None: modules have no mirror images."""

    def gradients_by_parity(self, trained: Set[int] | None = None) -> None:
        """Return None: modules have no mirror images."""

    def are_updated_alike(self, units: Sequence[int], updates: Updates) -> bool:
        """Return whether these modules have equal options and equal optimizer state."""
        columns = zip(*(_parameters_of(self.modules[unit]) for unit in units), strict=True)
        return all(updates.are_alike(column) for column in columns)

    def share_options(self, units: Sequence[int], updates: Updates) -> bool:
        """Return whether corresponding parameters of these modules are in one parameter group."""
        columns = zip(*(_parameters_of(self.modules[unit]) for unit in units), strict=True)
        return all(updates.share_a_group(column) for column in columns)


def find_copies(
    model: nn.Module,
    layers: Iterable[Layer],
    team: Team | None = None,
    trained: Set[int] | None = None,
    numbers: Numbers | None = None,
) -> list[Copies]:
    """Find the outermost modules that are copies of one another and contain at least one layer.

    The modules of a set share no parameters and train alike: a target network, a teacher or an average is in no set
    with the module that it follows. Omitted are modules without a trained parameter, and modules whose parameters are
    all constant: zero-initialised heads, for example, are equal on purpose.

    Args:
        model: any module.
        layers: its layers, as :func:`find_layers` returns them.
        team: the ranks that hold the model; None: this process has all of it.
        trained: identities (``id``) of the parameters that an optimizer updates and that gradients have reached;
            None: all that require a gradient.
        numbers: access to numbers that are not in memory; None: all numbers are in memory.
    """
    readable = {id(original) for layer in layers for original in layer.originals}
    by_kind: dict[object, list[tuple[str, nn.Module]]] = {}
    flattened = flattened_modules(model)
    modules = dict(readable_modules(model))  # a wrapped module replaces its wrapper of the same name
    num_of_class = Counter(map(class_of, modules.values()))
    for name, module in modules.items():
        if num_of_class[class_of(module)] == 1:
            continue  # as the model itself, whose parameters take long to list
        named = dict(named_parameters_of(module))  # called once, since it walks through the module
        which_train = tuple(is_trained(parameter, trained) for parameter in named.values())
        if id(module) in flattened or not (trained is None or any(which_train)):
            continue
        if not readable.isdisjoint(map(id, named.values())) and all(map(_can_be_read, named.values())):
            # Copies share their class, and the names, shapes and dtypes of their parameters.
            kind = class_of(module), which_train, tuple((key, p.shape, p.dtype) for key, p in named.items())
            by_kind.setdefault(kind, []).append((name, module))
    accepted: list[Copies] = []
    inside: list[str] = []
    for members in sorted(by_kind.values(), key=_size, reverse=True):  # modules come before their parts
        outer = [(name, module) for name, module in members if not name.startswith(tuple(inside))]
        for found in _equal(outer, team, numbers) if len(outer) > 1 else ():
            accepted.append(found)
            inside += [f"{name}." for name in found.row_names]
    order = {name: i for i, name in enumerate(modules)}
    return sorted(accepted, key=lambda found: order[found.row_names[0]])


def find_equal_parameters(model: nn.Module, layers: Iterable[Layer], trained: Set[int] | None = None) -> list[Copies]:
    """Find equal parameters that one module holds side by side, such as tokens, prompts, slots or experts.

    The parameters of a set train alike. Unlike modules they may be constant: tokens that all start from zero may never
    diverge. Parameters that the adapters of ``layers`` know are omitted; ``trained`` is as for :func:`find_copies`.
    """
    if flattened_modules(model):
        return []
    known = {identity for layer in layers if not layer.slices_of for identity in layer.identity}
    by_kind: dict[object, list[tuple[str, nn.Parameter]]] = {}
    for name, holder, parameter in readable_parameters(model):
        does_train = is_trained(parameter, trained)
        if not (does_train or trained is None) or id(parameter) in known or is_sharded(parameter):
            continue
        if _can_be_read(parameter) and parameter.numel() > 1 and not _is_bias(name, parameter):
            kind = holder, parameter.shape, parameter.dtype, does_train
            by_kind.setdefault(kind, []).append((name, parameter))
    return [_together(group) for members in by_kind.values() for group in _groups_of_equal(members)]


def copies_named(model: nn.Module, names: Sequence[str]) -> Copies:
    """Return the modules or parameters of these names, which another rank has found to be copies."""
    found = dict(holders_by_name(model))
    return Copies(tuple(names), tuple(found[name] for name in names))


def holders_by_name(model: nn.Module) -> Iterator[tuple[str, _Holder]]:
    """Yield everything that may be a copy, with its name: all parameters and all modules."""
    yield from ((name, parameter) for name, _, parameter in readable_parameters(model))
    yield from readable_modules(model)


def _parameters_of(holder: _Holder) -> Iterator[nn.Parameter]:
    return iter((holder,)) if isinstance(holder, Tensor) else parameters_of(holder)


def _gradients_side_by_side(parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """Return the gradients of parameters of one shape; None if one is missing. Of sparse ones only used rows remain."""
    if all(p.grad is not None and p.grad.layout == torch.sparse_coo and p.grad.sparse_dim() == 1 for p in parameters):
        sparse = [cast("Tensor", p.grad).detach().coalesce() for p in parameters]
        rows = torch.cat([each.indices()[0] for each in sparse]).unique()
        return [each.index_select(0, rows).to_dense() for each in sparse] if len(rows) else None
    gradients = [gradient for p in parameters if (gradient := readable_gradient(p)) is not None]
    return gradients if len(gradients) == len(parameters) else None


def _is_bias(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is named like a bias. Biases that are added to each other stay equal, harmlessly."""
    own = name.rpartition(".")[2]
    return parameter.ndim == 1 and ("bias" in own or own.partition("_")[0] == "b")


def _can_be_read(tensor: Tensor) -> bool:
    try:
        check_tensor(tensor)
    except Exception:  # tensors may be code of users
        return False
    return True


def _as_row(tensor: Tensor) -> Tensor:
    return real_rows(tensor[None])


def _size(members: _Members) -> tuple[int, int]:
    """Return the number of weights and of submodules, which is the same for all members of one kind."""
    module = members[0][1]
    return sum(parameter.numel() for parameter in parameters_of(module)), sum(1 for _ in modules_of(module))


def _equal(members: _Members, team: Team | None, numbers: Numbers | None) -> Iterator[Copies]:
    """Yield the copies among modules of one kind."""
    any_sharded = any(is_sharded(parameter) for _, module in members for parameter in parameters_of(module))
    if any_sharded and team is None:
        return
    team = team if any_sharded else None
    heads = _heads_of_all(_together(members), team) if team else [_head(module, numbers) for _, module in members]
    by_head: dict[object, list[tuple[str, nn.Module]]] = {}
    for head, member in zip(heads, members, strict=True):
        by_head.setdefault(tuple(head), []).append(member)
    for candidates in by_head.values():
        if len(candidates) > 1:
            yield from _equal_across(candidates, team) if team else _equal_here(candidates, numbers)


def _together(members: Sequence[tuple[str, _Holder]]) -> Copies:
    names, modules = zip(*members, strict=True)
    return Copies(names, modules)


def _head(module: nn.Module, numbers: Numbers | None) -> list[float]:
    """Return the first few numbers of a weight, in which usually only copies agree."""
    first = max(parameters_of(module), key=lambda parameter: parameter.ndim)
    if numbers is not None:
        return numbers.head(first)
    head: list[float] = first.detach().flatten()[:_HEAD_LENGTH].tolist()
    return head


def _equal_here(candidates: _Members, numbers: Numbers | None) -> Iterator[Copies]:
    groups = _groups_of_equal(candidates) if numbers is None else _groups_by_digest(candidates, numbers)
    for group in groups:
        if not all(_is_constant(parameter, numbers) for parameter in _parameters_of(group[0][1])):
            yield _together(group)


def _is_constant(parameter: Tensor, numbers: Numbers | None) -> bool:
    if numbers is not None:
        return numbers.is_constant(parameter)
    return not bool((parameter != parameter.flatten()[:1]).any())


def _groups_by_digest(candidates: _Members, numbers: Numbers) -> list[list[tuple[str, nn.Module]]]:
    """Return the sets of equal modules that share no parameter, by hash and thus in linear time."""
    groups: dict[object, list[tuple[str, nn.Module]]] = {}
    for name, module in candidates:
        group = groups.setdefault(tuple(map(numbers.digest, parameters_of(module))), [])
        if not group or all(p is not q for p, q in zip(*map(parameters_of, (group[0][1], module)), strict=True)):
            group.append((name, module))
    return [group for group in groups.values() if len(group) > 1]


def _groups_of_equal(candidates: Sequence[tuple[str, _HolderT]]) -> list[list[tuple[str, _HolderT]]]:
    """Return the sets of two or more equal modules, or parameters, of one kind."""
    groups: list[list[tuple[str, _HolderT]]] = []
    for member in candidates:
        home = next((group for group in groups if _are_copies(group[0][1], member[1])), None)
        if home is None:
            groups.append([member])
        else:
            home.append(member)
    return [group for group in groups if len(group) > 1]


def _are_copies(a: _Holder, b: _Holder) -> bool:
    pairs = zip(_parameters_of(a), _parameters_of(b), strict=True)
    return all(p is not q and p.device == q.device and torch.equal(p, q) for p, q in pairs)


def _heads_of_all(every: Copies, team: Team) -> list[list[float]]:
    """Return the result of :func:`_head` for each of several sharded modules."""
    dimensions = [parameter.ndim for parameter in _parameters_of(every.modules[0])]
    piece = max(range(len(dimensions)), key=dimensions.__getitem__)
    return first_numbers(team, ("weights", *every.row_names), every.weights(), piece, _HEAD_LENGTH)


def _equal_across(candidates: _Members, team: Team) -> Iterator[Copies]:
    """Yield the copies among sharded modules."""
    # Modules that share a parameter are no copies: only the first of them is compared.
    seen: set[int] = set()
    distinct = []
    for member in candidates:
        own = set(map(id, parameters_of(member[1])))
        if not own & seen:
            distinct.append(member)
        seen |= own
    if len(distinct) < 2:
        return
    together = _together(distinct)
    for rows in equal_rows(team, ("weights", *together.row_names), together.weights()):
        yield _together([distinct[row] for row in rows])
