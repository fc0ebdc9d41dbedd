"""One look at the layers: which units have equal weights, and whether their gradients are equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lightning_symmetry.matrices.dense import DenseRows
from lightning_symmetry.matrices.grouping import (
    NONE_PROJECTED,
    Grouping,
    find_groups,
    find_groups_within_budget,
    is_chance_group,
    merge_overlapping,
)
from lightning_symmetry.matrices.mirrors import Mirrored, Parity, find_mirrors, spreads
from lightning_symmetry.matrices.numerics import Floats, Indices, Mask, exact_arithmetic
from lightning_symmetry.matrices.partition import stable_groups
from lightning_symmetry.matrices.question import TOLERANCES, Question
from lightning_symmetry.matrices.rows import Rows
from lightning_symmetry.matrices.sieve import suspects, suspects_among
from lightning_symmetry.matrices.sketching import sketch_all
from lightning_symmetry.ranks.sketches import read
from lightning_symmetry.ranks.team import Name, Team, TeamError
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.units.updates import Updates
from lightning_symmetry.verdicts.diagnoses import Cause
from lightning_symmetry.verdicts.gradients import GradientEvidence, noise_floor, none_of
from lightning_symmetry.verdicts.look import Crowd, Gradients, Look, Sighting, Steady
from lightning_symmetry.verdicts.proof import Proof


def look(
    layers: Sequence[Comparable],
    *,
    tolerance: float | None = None,
    trained: Set[int] | None = None,
    known: Mapping[str, Sequence[Mirrored]] | None = None,
    gated: Collection[str] = (),
    steady: Mapping[str, Steady] | None = None,
    largest: float = 0.0,
    rounding_gain: float = 0.0,
    exact: Collection[str] = (),
    updates: Updates | None = None,
    proven: Mapping[str, Collection[tuple[int, ...]]] | None = None,
    on_error: Callable[[Comparable, Exception], None] | None = None,
    team: Team | None = None,
) -> list[Look]:
    """Look once at the weights and gradients of some layers.

    Args:
        layers: the layers.
        tolerance: relative L2 distance up to which rows count as equal; None: by dtype.
        trained: identities of the parameters whose gradients count; None: all.
        known: by layer name, groups of earlier looks, with their mirror images; they end only at a looser tolerance.
        gated: names of layers with gates whose units are searched for mirror images; the search takes long.
        steady: by layer name, settled groups, for which it is enough to verify that they are unchanged.
        largest: largest norm of a gradient row in the layers of the model that are not among ``layers``.
        rounding_gain: factor by which the model enlarges rounding errors in gradients; 0: only exact zeros count as
            zero.
        exact: names of layers in which only exact zeros count as zero, whatever ``rounding_gain`` is.
        updates: how the optimizers update the layers; None: unknown, all units are assumed to be updated alike.
        proven: by layer name, groups that are known to stay equal; other groups need a proof for it.
        on_error: called with the layer and the exception when reading a layer fails; the layer is left out. None:
            the exception is raised.
        team: the ranks that hold the layers; None: they are all here.

    Returns:
        One look per layer.
    """
    known = known or {}

    @contextmanager
    def guarded(layer: Comparable) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if on_error is None:
                raise
            on_error(layer, error)

    with ExitStack() as stack:
        for device in {layer.device for layer in layers}:
            stack.enter_context(exact_arithmetic(device))
        matrices: list[_Matrices] = []
        for layer in layers:
            with guarded(layer):
                parity = layer.parity() if layer.odd_gates is not None and layer.name in gated else None
                matrices.append(
                    _Matrices(
                        layer,
                        layer.weights(),
                        layer.gradients(trained),
                        layer.recurrent_rows(),
                        None if parity is None else parity.odd,
                    )
                )
        if team is not None:
            matrices = _announce(team, matrices, guarded)
        sketched: list[_Sketched] = []
        try:
            sketched = _read(matrices, tolerance)
        except Exception:
            # Read each layer by itself, to find the one that fails.
            for matrix in matrices:
                with guarded(matrix.layer):
                    sketched += _read([matrix], tolerance)
        scale = max([largest, *(item.largest_gradient() for item in sketched)])
        looks: list[Look] = []
        others: list[_Sketched] = []
        for item in sketched:
            with guarded(item.layer):
                groups = steady.get(item.layer.name) if steady else None
                if groups is not None and _are_steady(item, groups, scale):
                    looks.append(replace(item.distinct(), is_steady=True))
                else:
                    others.append(item)
        questions = [question for item in others for question in item.questions()]
        suspected = {id(question): rows for question, rows in zip(questions, suspects(questions), strict=True)}
        for item in others:
            name, of_weights = item.layer.name, suspected[id(item.weights)]
            of_gradients = suspected[id(item.gradients)] if item.gradients else None
            of_odd = suspected[id(item.odd)] if item.odd else None
            with guarded(item.layer):
                noise = noise_floor(item.gradients, scale) if item.gradients else 0.0
                floor = 0.0 if name in exact else rounding_gain * noise
                of_all = [of_weights] if of_odd is None else [of_weights, of_odd]
                if _is_unremarkable(item, of_all, of_gradients, known.get(name, ()), floor):
                    seen = item.distinct()
                else:
                    by_parity = partial(item.layer.gradients_by_parity, trained)
                    judge = GradientEvidence(item.layer, item.gradients, of_gradients, scale, floor, by_parity)
                    proof = Proof(layers, updates, (proven or {}).get(name, ()), noise)
                    seen = _look_at(item, of_weights, of_odd, judge, known.get(name, ()), proof)
                    seen = replace(seen, floor=floor)
                if item.gradients and 0 < item.largest_gradient() <= noise:
                    seen = replace(seen, is_faint=True)
                looks.append(replace(seen, norms=item.weights.sketch.norms))
        return looks


@dataclass(frozen=True)
class _Matrices:
    """The matrices of a layer before they are read."""

    layer: Comparable
    weights: Rows
    gradients: Rows | None
    recurrent: Rows | None
    odd: Rows | None


def _announce(
    team: Team, matrices: Sequence[_Matrices], guarded: Callable[[Comparable], AbstractContextManager[None]]
) -> list[_Matrices]:
    """Make sharded matrices known to all ranks, and leave out the layers that some rank cannot read.

    If the gradients of a layer are missing on some rank, such as those of an expert that the rank did not use, the
    layer is read as one without gradients.
    """

    def name(item: _Matrices, part: str) -> Name:
        return (part, *(item.layer.row_names or (item.layer.name,)))

    parts = ("weights", "gradients", "recurrent")
    failures = read(team, {name(item, part): getattr(item, part) for item in matrices for part in parts})
    known: list[_Matrices] = []
    for item in matrices:
        with guarded(item.layer):
            for part in parts:
                reason = failures.get(name(item, part))
                if reason or (reason is not None and part != "gradients"):
                    raise TeamError(reason or f"its {part} are not on every rank")
            known.append(replace(item, gradients=None) if name(item, "gradients") in failures else item)
    return known


@dataclass(frozen=True)
class _Sketched:
    """The sketched matrices of a layer."""

    layer: Comparable
    weights: Question
    gradients: Question | None
    recurrent: Rows | None
    odd: Question | None  # the weights that change sign in a mirror image; None if all do

    def rows(self) -> tuple[Rows, Rows | None]:
        return self.weights.rows, self.gradients.rows if self.gradients else None

    @property
    def fingerprint(self) -> int:
        return hash(self.weights.sketch.projections.tobytes())

    def distinct(self) -> Look:
        """Return the look for a layer in which no units are equal."""
        return look_at_distinct(self.layer, self.rows, fingerprint=self.fingerprint)

    def questions(self) -> list[Question]:
        return [each for each in (self.weights, self.gradients, self.odd) if each is not None]

    def largest_gradient(self) -> float:
        """Return the largest finite norm of a gradient row."""
        return float(np.fmax.reduce(self.gradients.sketch.norms, initial=0.0)) if self.gradients else 0.0


def _read(matrices: Sequence[_Matrices], tolerance: float | None) -> list[_Sketched]:
    every = [rows for item in matrices for rows in (item.weights, item.gradients, item.odd) if rows]
    sketches = {id(rows): sketch for rows, sketch in zip(every, sketch_all(every), strict=True)}

    def question(rows: Rows, layer: Comparable) -> Question:
        entered_at = TOLERANCES[rows.dtype] if tolerance is None else tolerance
        return Question(rows, sketches[id(rows)], entered_at, layer.blocks)

    return [
        _Sketched(
            item.layer,
            question(item.weights, item.layer),
            question(item.gradients, item.layer) if item.gradients else None,
            item.recurrent,
            question(item.odd, item.layer) if item.odd else None,
        )
        for item in matrices
    ]


def _is_unremarkable(
    item: _Sketched,
    of_weights: Sequence[Indices],
    of_gradients: Indices | None,
    known: Sequence[Mirrored],
    floor: float,
) -> bool:
    """Return whether no rows may agree, all are finite, and no gradient is zero, as in most layers."""
    if np.isnan(item.weights.sketch.norms).any():
        return False
    if any(map(len, of_weights)) or known or item.gradients is None or of_gradients is None or len(of_gradients):
        return False
    norms = item.gradients.sketch.norms
    return len(norms) > 0 and bool(norms.min() > floor)  # neither zero nor NaN


def _are_steady(item: _Sketched, steady: Steady, scale: float) -> bool:
    """Return whether steady groups are unchanged, and no other units agree or have no gradient."""
    if item.gradients is None or item.recurrent is not None:
        return False
    norms = item.gradients.sketch.norms
    if not (norms[steady.firsts] > noise_floor(item.gradients, scale)).all():
        return False
    return all(
        bool((question.sketch.norms > 0).all())  # neither zero nor NaN
        and not len(suspects_among(question, steady.distinct))
        and bool(question.agree(steady.members, steady.firsts).all())
        for question in item.questions()
    )


def look_at_distinct(
    layer: Comparable,
    read: Callable[[], tuple[Rows, Rows | None]],
    idle: Mask | None = None,
    fingerprint: int | None = None,
    directions: Floats | None = None,
) -> Look:
    """Return the look at a layer without equal units, and with gradients that differ or are zero.

    Args:
        layer: the layer.
        read: as :attr:`Look.read`; all gradients are finite, and at least one is not zero.
        idle: which units have a gradient of exactly zero, ``(num_units,)``; None: none.
        fingerprint: hash of the weights, if there is one.
        directions: as :attr:`Look.directions`.
    """
    nothing = none_of(layer.num_units) if layer.can_freeze or layer.dies_as_a_whole else None
    is_idle = idle if idle is not None and layer.can_freeze else nothing
    return Look(layer, read, (), fingerprint, True, is_idle, nothing, directions=directions)


def _look_at(
    item: _Sketched,
    suspected: Indices,
    suspected_of_odd: Indices | None,
    judge: GradientEvidence,
    known: Sequence[Mirrored],
    proof: Proof,
) -> Look:
    layer, weights = item.layer, item.weights
    known = [group for group in known if group.rows[-1] < layer.num_units]
    known_mirrored = [group for group in known if group.negative]
    found = _equal_units(weights, item.recurrent, suspected=suspected)
    groups = _equal_in_all(layer, found.groups, weights.tolerance)
    if groups:
        causes = _causes(layer, weights.rows, groups)
        groups = [group for group, cause in zip(groups, causes, strict=True) if not _is_coincidence(group, item, cause)]
    if known:
        group_of = {unit: i for i, group in enumerate(groups) for unit in group}
        incomplete = [
            group.rows
            for group in known
            if not group.negative and len({group_of.get(unit, -1 - unit) for unit in group.rows}) > 1
        ]
        if incomplete:
            loose = weights.loosened()
            still_equal = _equal_units(loose, item.recurrent, among=incomplete).groups
            groups = merge_overlapping([*groups, *_equal_in_all(layer, still_equal, loose.tolerance)])
    mirrors: list[tuple[Mirrored, Gradients]] = []
    # Where only some of the weights change sign, these decide which units are mirror images.
    of_mirrors = suspected if layer.odd_gates is None else suspected_of_odd
    if known_mirrored or (of_mirrors is not None and len(of_mirrors) > 1):
        mirrors = _mirrors(item, of_mirrors, found._replace(groups=groups), known_mirrored, judge)
        mirrored_units = {unit for mirrored, _ in mirrors for unit in mirrored.rows}
        groups = [group for group in groups if mirrored_units.isdisjoint(group)]
    gradients = [
        Gradients.DIFFERENT if each is Gradients.EQUAL and proof.updates_differ(layer, group) else each
        for group, each in zip(groups, judge.of(groups), strict=True)
    ]
    sightings = proof.mark(layer, _sightings(item, groups, gradients, has_equal_weights=True))
    if mirrors:
        sightings += _sightings_of_mirrors(item, mirrors)
    grouped = {unit for sighting in sightings for unit in sighting.units}
    in_lockstep = judge.in_lockstep(exclude=grouped)
    if layer.is_computed:
        in_lockstep = [group for group in in_lockstep if not _are_rounded_alike(layer.computed_rows(), group)]
    sightings += _sightings(item, in_lockstep, [Gradients.EQUAL] * len(in_lockstep), has_equal_weights=False)
    return Look(
        layer,
        item.rows,
        tuple(sightings),
        item.fingerprint,
        item.gradients is not None and bool(np.count_nonzero(item.gradients.sketch.norms)),
        *judge.idle(_norms_of_all(layer, weights.sketch.norms), exclude=grouped),
        is_finite=bool(np.isfinite(weights.sketch.norms).all()),
        crowd=Crowd(len(found.crowded), found.radius),
    )


def _equal_units(
    weights: Question,
    recurrent: Rows | None,
    *,
    suspected: Indices | None = None,
    among: Sequence[Sequence[int]] | None = None,
) -> Grouping:
    """Return the groups of equal units, as far as they were found within the allowed effort."""
    found = find_groups_within_budget(weights, suspected=suspected, among=among)
    if found.groups and recurrent is not None:
        return found._replace(groups=stable_groups(found.groups, recurrent, weights.tolerance))
    return found


def _equal_in_all(layer: Comparable, groups: list[tuple[int, ...]], tolerance: float) -> list[tuple[int, ...]]:
    """Split groups of units with equal parameters where the weights computed from these differ."""
    parity = layer.parity() if groups and layer.is_computed else None
    for rows in filter(None, parity or ()):
        [sketch] = sketch_all([rows])
        groups = find_groups(Question(rows, sketch, tolerance, layer.blocks), among=groups) if groups else []
    return groups


def _are_rounded_alike(computed: Rows, group: Sequence[int]) -> bool:
    """Return whether any two units of a group have computed weights of one direction.

    Different parameters that are rounded to the same few levels have equal gradients until they differ by a level.
    """
    rows = computed.fetch(np.array(group))
    directions = DenseRows([rows / rows.norm(dim=1, keepdim=True)])
    [sketch] = sketch_all([directions])
    return bool(find_groups(Question(directions, sketch, TOLERANCES[directions.dtype])))


def _norms_of_all(layer: Comparable, norms: Floats) -> Floats:
    """Return norms ``(num_units,)`` that are zero only where parameters and computed weights are both zero."""
    if not layer.is_computed or norms.all():
        return norms
    [sketch] = sketch_all([layer.computed_rows()])
    return np.maximum(norms, sketch.norms)


def _is_coincidence(group: Sequence[int], item: _Sketched, cause: tuple[Cause, float | None]) -> bool:
    rows = item.weights.rows
    # The weights of a constant row count as one number: they could not have differed from one another.
    width = rows.width if cause[0] is Cause.COPIED else 1 + rows.width - rows.widths[0]
    return item.weights.sketch.norms[group[0]] != 0 and is_chance_group(item.weights, group, width)


def _sightings(
    item: _Sketched, groups: Sequence[tuple[int, ...]], gradients: Sequence[Gradients], *, has_equal_weights: bool
) -> list[Sighting]:
    if not groups:
        return []
    weights = item.weights
    firsts = np.array([group[0] for group in groups])
    positions = weights.rows.positions(firsts)
    tolerances = np.array([weights.tolerance, weights.loosened().tolerance])
    scales = tolerances * weights.sketch.norms[firsts, None]
    causes = _causes(item.layer, weights.rows, groups) if has_equal_weights else [(Cause.COPIED, None)] * len(groups)
    return [
        Sighting(group, has_equal_weights, gradient, *cause, float(position), *scale[::-1])
        for group, gradient, cause, position, scale in zip(
            groups, gradients, causes, positions, scales.tolist(), strict=True
        )
    ]


def _mirrors(
    item: _Sketched,
    suspected: Indices | None,
    equal: Grouping,
    known: Sequence[Mirrored],
    judge: GradientEvidence,
) -> list[tuple[Mirrored, Gradients]]:
    """Return the sets of units that are equal up to sign, with the evidence of their gradients.

    Behind most activations a unit and its negative do different work, as in looks-linear initialisation (Balduzzi et
    al. 2017, arXiv 1702.08591): such a set counts only if its gradients are equal up to sign too, or if it is known
    from earlier looks.
    """
    layer, weights = item.layer, item.weights
    parity = layer.parity()
    old = _still_mirrored(weights, known, weights.loosened().tolerance, parity)
    known_units = {unit for mirrored in old for unit in mirrored.rows}
    if item.odd is not None:
        equal = equal._replace(projected=NONE_PROJECTED)  # which are rows of the weights, not of these
    found = [] if suspected is None or len(suspected) < 2 else find_mirrors(item.odd or weights, equal, suspected)
    sets = [mirrored for mirrored in found if known_units.isdisjoint(mirrored.rows)]
    if parity is not None:
        sets = _still_mirrored(weights, sets, weights.tolerance, parity)
    # The only two units of a layer are mirror images wherever only their difference counts, as under a softmax.
    sets = [mirrored for mirrored in sets if not len(mirrored.rows) == 2 == layer.num_units // layer.blocks]
    if item.recurrent is not None:
        sets = _stable_mirrors(sets, equal.groups, item.recurrent, weights.tolerance, layer.odd_gates)
    sets = [s for s in sets if not _is_coincidence(s.rows, item, (Cause.COPIED, None))]
    judged = list(zip([*old, *sets], judge.of_mirrored([*old, *sets]), strict=True))
    grouped = {unit for group in equal.groups for unit in group}
    # If a mirrored set diverges, the groups of equal units in it replace it.
    kept = [
        (mirrored, gradients)
        for mirrored, gradients in judged[: len(old)]
        if gradients is not Gradients.DIFFERENT or grouped.isdisjoint(mirrored.rows)
    ]
    return kept + [pair for pair in judged[len(old) :] if pair[1] is Gradients.EQUAL]


def _still_mirrored(weights: Question, sets: Sequence[Mirrored], limit: float, parity: Parity | None) -> list[Mirrored]:
    """Return the sets whose units are all equal up to sign, at relative distances up to ``limit``."""
    if not sets:
        return []
    return [
        mirrored
        for mirrored, distance in zip(sets, spreads(weights, sets, parity).tolist(), strict=True)
        # neither zero nor NaN
        if (weights.sketch.norms[list(mirrored.rows)] > 0).all() and distance <= limit
    ]


def _stable_mirrors(
    sets: Sequence[Mirrored],
    groups: Sequence[tuple[int, ...]],
    recurrent: Rows,
    tolerance: float,
    odd_gates: Sequence[int] | None,
) -> list[Mirrored]:
    """Return the parts of mirrored sets whose units also agree in their recurrent weights."""
    if not sets or (odd_gates is None and recurrent.width != recurrent.num_rows):
        return []
    negative = {unit for mirrored in sets for unit in mirrored.negative}
    of_mirrors = {unit for mirrored in sets for unit in mirrored.rows}
    others = [group for group in groups if of_mirrors.isdisjoint(group)]
    stable = stable_groups([*(mirrored.rows for mirrored in sets), *others], recurrent, tolerance, negative, odd_gates)
    signed = [
        (group, tuple(unit for unit in group if (unit in negative) != (group[0] in negative))) for group in stable
    ]
    return [Mirrored(group, mirrored) for group, mirrored in signed if mirrored]


def _sightings_of_mirrors(item: _Sketched, mirrors: Sequence[tuple[Mirrored, Gradients]]) -> list[Sighting]:
    sets, gradients = zip(*mirrors, strict=True)
    sightings = _sightings(item, [mirrored.rows for mirrored in sets], gradients, has_equal_weights=True)
    return [
        # At one look an even slope, such as that of a sigmoid, can make the gradients mirror images.
        replace(sighting, cause=Cause.MIRRORED, value=None, mirrored=mirrored.negative, is_proof=False)
        for sighting, mirrored in zip(sightings, sets, strict=True)
    ]


def _causes(layer: Comparable, rows: Rows, groups: Sequence[tuple[int, ...]]) -> list[tuple[Cause, float | None]]:
    causes: list[tuple[Cause, float | None]] = []
    constants = rows.constants(np.array([group[0] for group in groups]))
    for group, value in zip(groups, constants.tolist(), strict=True):
        if math.isnan(value):
            causes.append((Cause.COPIED, None))
        elif value == 0:
            causes.append((Cause.ZERO, 0.0))  # not -0
        elif layer.fan_in == 1 and len(group) < layer.num_units:  # a row of one number is always constant
            causes.append((Cause.COPIED, None))
        else:
            causes.append((Cause.CONSTANT, value))
    return causes
