"""The fewest hidden units that compute the same, and how many `merge_duplicates` leaves.

Paper: Matthew Farrugia-Roberts (2023), "Proximity to Losslessly Compressible Parameters", arXiv 2306.02834. Its
companion, arXiv 2305.05089, describes all parameters with the same function.

The claim: the rank of a network with one hidden layer of tanh units, which is the smallest number of hidden units that
compute the same function, is the number left after removing units with a constant output (their incoming weights are
zero; the constant goes into the bias of the outputs), merging units whose incoming weights and biases are equal or
mirror images, and removing those whose outgoing weights are then zero. That no smaller network exists rests on
Sussmann (1992).

How: networks of five random units get up to four redundant ones of one kind, or one of each kind. Every number is a
multiple of 1/32 and small, so that float64 compares and adds them exactly. The algorithm above is implemented here as
the reference.

What `lightning_symmetry` does in it: `merge_duplicates` removes units. It is made for units that train as one, so it
does less: it leaves units with outgoing weights of zero and, unless their biases agree, constant ones; it merges copies
whose outgoing weights cancel into one unit that is not read; and it finds mirror images by their gradients, which
are mirror images only if the outgoing weights are negated too. So every network has gradients of some loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from examples.showing import Row, arguments, show
from lightning_symmetry import merge_duplicates

COPIES, NEGATED, MIRRORS = "copies", "mirror images, outgoing negated", "mirror images, outgoing any"
SILENT, CONSTANT, CANCELLING, ALL = "outgoing zero", "incoming zero", "copies that cancel", "one of each kind"
NUM_INPUTS, NUM_OUTPUTS, NUM_UNITS = 3, 2, 5
# The kinds of redundant units, and the unit to copy if one of each kind is added; not all kinds copy a unit.
_ONE_OF_EACH = {COPIES: 0, NEGATED: 1, MIRRORS: 2, SILENT: 0, CONSTANT: 0, CANCELLING: 3}


@dataclass(frozen=True)
class Parameters:
    """A network with one hidden layer of tanh units, in float64.

    Attributes:
        incoming: ``(units, inputs + 1)``, the bias of each unit last.
        outgoing: ``(outputs, units)``.
        offset: ``(outputs,)``, the biases of the outputs.
    """

    incoming: Tensor
    outgoing: Tensor
    offset: Tensor

    @property
    def num_units(self) -> int:
        """Number of hidden units."""
        return len(self.incoming)

    def network(self) -> nn.Sequential:
        """Return the network as a module."""
        outputs, units = self.outgoing.shape
        network = nn.Sequential(nn.Linear(NUM_INPUTS, units), nn.Tanh(), nn.Linear(units, outputs)).double()
        weight, bias = self.incoming[:, :-1], self.incoming[:, -1]
        network.load_state_dict({"0.weight": weight, "0.bias": bias, "2.weight": self.outgoing, "2.bias": self.offset})
        return network


@dataclass(frozen=True)
class Compressed:
    """The compressions of one network.

    Attributes:
        num_units: number of its hidden units.
        rank: number of units left by the paper's algorithm.
        num_merged: number of units left by `merge_duplicates`.
        rank_error: relative distance ``||a - b|| / ||a||`` of the former's outputs ``b`` from the original ones.
        merge_error: the same for the latter.
    """

    num_units: int
    rank: int
    num_merged: int
    rank_error: float
    merge_error: float


@dataclass(frozen=True)
class Result:
    """The results by the kind of redundant units."""

    networks: dict[str, tuple[Compressed, ...]]


def compress(parameters: Parameters) -> Parameters:
    """Return the same function with as few hidden units as possible, by the algorithm of the paper."""
    offset = parameters.offset.clone()
    listeners: dict[tuple[float, ...], Tensor] = {}
    for row, outgoing in zip(parameters.incoming, parameters.outgoing.T, strict=True):
        (nonzero,) = row[:-1].nonzero(as_tuple=True)
        if not len(nonzero):
            offset += outgoing * row[-1].tanh()
            continue
        sign = row[nonzero[0]].sign()
        key = tuple((sign * row + 0.0).tolist())  # adding zero turns -0.0 into 0.0
        listeners[key] = listeners.get(key, torch.zeros_like(outgoing)) + sign * outgoing
    kept = {key: outgoing for key, outgoing in listeners.items() if outgoing.any()}
    incoming = torch.tensor(list(kept), dtype=torch.float64).reshape(len(kept), NUM_INPUTS + 1)
    outgoing = torch.stack([*kept.values()], dim=1) if kept else torch.zeros(NUM_OUTPUTS, 0, dtype=torch.float64)
    return Parameters(incoming, outgoing, offset)


def _numbers(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw multiples of 1/32 between -2 and 2, except zero."""
    sizes = torch.randint(1, 65, shape, generator=generator)
    return sizes.double() / 32 * (2 * torch.randint(2, shape, generator=generator) - 1)


def irreducible(generator: Generator) -> Parameters:
    """Draw a random network, whose units almost surely differ."""
    shapes = ((NUM_UNITS, NUM_INPUTS + 1), (NUM_OUTPUTS, NUM_UNITS), (NUM_OUTPUTS,))
    return Parameters(*(_numbers(shape, generator) for shape in shapes))


def with_redundant(parameters: Parameters, kind: str, units: Tensor, generator: Generator) -> Parameters:
    """Add redundant units of one kind.

    Args:
        parameters: the network; it is not changed.
        kind: the kind.
        units: the units to copy; for kinds without copies, only their number matters.
        generator: source of random numbers.
    """
    rows, outgoing = parameters.incoming[units], parameters.outgoing[:, units]
    fresh_rows, fresh_outgoing = _numbers(rows.shape, generator), _numbers(outgoing.shape, generator)
    constant = torch.cat([torch.zeros_like(rows[:, :-1]), fresh_rows[:, -1:]], dim=1)
    added: dict[str, tuple[Tensor, Tensor]] = {
        COPIES: (rows, fresh_outgoing),
        NEGATED: (-rows, -outgoing),
        MIRRORS: (-rows, fresh_outgoing),
        SILENT: (fresh_rows, torch.zeros_like(outgoing)),
        CONSTANT: (constant, fresh_outgoing),
        CANCELLING: (rows, -outgoing),
    }
    more_rows, more_outgoing = added[kind]
    return Parameters(
        torch.cat([parameters.incoming, more_rows]),
        torch.cat([parameters.outgoing, more_outgoing], dim=1),
        parameters.offset,
    )


def _of_one_kind(kind: str) -> Callable[[Generator], Parameters]:
    def draw(generator: Generator) -> Parameters:
        num_redundant = int(torch.randint(1, NUM_UNITS, (), generator=generator))
        return with_redundant(irreducible(generator), kind, torch.arange(num_redundant), generator)

    return draw


def _of_each_kind(generator: Generator) -> Parameters:
    parameters = irreducible(generator)
    for kind, unit in _ONE_OF_EACH.items():
        parameters = with_redundant(parameters, kind, torch.tensor([unit]), generator)
    return parameters


@torch.no_grad()
def _error(parameters: Parameters, other: nn.Module, inputs: Tensor) -> float:
    expected = parameters.network()(inputs)
    return float((other(inputs) - expected).norm() / expected.norm())


def examine(parameters: Parameters, generator: Generator) -> Compressed:
    """Compress a network with both algorithms."""
    inputs = 2 * torch.randn(64, NUM_INPUTS, generator=generator, dtype=torch.float64)
    shorter = compress(parameters)
    network = parameters.network()
    network(inputs).sin().square().sum().backward()
    merged = merge_duplicates(network, inputs).model
    return Compressed(
        parameters.num_units,
        shorter.num_units,
        merged.get_submodule("0").get_parameter("weight").shape[0],
        _error(parameters, shorter.network(), inputs),
        _error(parameters, merged, inputs),
    )


def run(*, short: bool) -> Result:
    """Compress random networks of each kind."""
    num_networks = 3 if short else 25
    generator = Generator().manual_seed(0)
    kinds = {kind: _of_one_kind(kind) for kind in _ONE_OF_EACH}
    networks = {}
    with torch.random.fork_rng(devices=[]):  # modules draw their initial weights from the global generator
        for kind, draw in {**kinds, ALL: _of_each_kind}.items():
            networks[kind] = tuple(examine(draw(generator), generator) for _ in range(num_networks))
    return Result(networks)


def rows(result: Result) -> list[Row]:
    """Return the lines of the table."""
    table = []
    for kind, networks in result.networks.items():
        total, merged = sum(one.num_units for one in networks), sum(one.num_merged for one in networks)
        rank = sum(one.rank for one in networks)
        quantity = f"{kind}: units left in {len(networks)} networks"
        table.append(Row(quantity, f"{merged} of {total}", f"{rank}, the sum of the ranks"))
    everything = [one for networks in result.networks.values() for one in networks]
    merge_error, rank_error = max(one.merge_error for one in everything), max(one.rank_error for one in everything)
    table.append(Row("largest relative error of the outputs", f"{merge_error:.0e}", f"{rank_error:.0e}; 0 by theory"))
    return table


def picture(result: Result) -> Figure:
    """Plot the units at the start, left by `merge_duplicates` and by the paper's algorithm, by kind; and the errors."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    units, errors = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    for y, networks in enumerate(result.networks.values()):
        bars = {
            "at the start": [one.num_units for one in networks],
            "left by merge_duplicates": [one.num_merged for one in networks],
            "left by the paper's algorithm: the rank": [one.rank for one in networks],
        }
        for i, (label, numbers) in enumerate(bars.items()):
            mean = sum(numbers) / len(numbers)
            units.barh(y + 0.27 * (i - 1), mean, 0.25, color=f"C{i}", label=label if y == 0 else None)
        for i, found in enumerate(
            ([one.merge_error for one in networks], [one.rank_error for one in networks]), start=1
        ):
            errors.plot([max(error, 1e-18) for error in found], [y + 0.27 * (i - 1)] * len(found), "o", color=f"C{i}")
    units.set_yticks(range(len(result.networks)), list(result.networks))
    units.invert_yaxis()
    units.set_xlabel("hidden units, mean over networks")
    errors.set(xscale="log", xlim=(5e-19, 1e-14), xlabel="relative error of the outputs; none is at 1e-18")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    """Run from the command line."""
    options = arguments("Lossless compressibility of tanh networks, and merge_duplicates")
    result = run(short=options.short)
    title = "Lossless compressibility (arXiv 2306.02834)"
    show(title, rows(result), picture(result), options.output, "lossless_compressibility")


if __name__ == "__main__":
    main()
