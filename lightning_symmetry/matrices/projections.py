"""Random vectors to project rows on, and bounds on the difference of projections of rows that agree.

The vectors are constant over chunks of neighbouring columns, so that a product takes the sums of the chunks and little
else.
"""

from __future__ import annotations

import math
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from lightning_symmetry.matrices.numerics import CPU

NUM_PROJECTIONS = 3
"""Number of random vectors of the sketch."""

NUM_FURTHER = 16
"""Number of further random vectors, for the few rows that the sketch does not distinguish."""

NUM_ESTIMATED = 2
"""Number of the further vectors from which distances of rows that lie on several ranks are estimated."""

NUM_ROUGH = 8
"""Number of random vectors for keys that distinguish rows of different directions."""

MAX_KEPT_BYTES = 1 << 26
"""Random vectors are kept up to this size, and the ones used last whatever their size."""

PERIOD = 1 << 16
"""After this many columns, the vector of :func:`position_vector` starts again, with the other sign."""

# The random vectors hold numbers uniform in [-sqrt(3), sqrt(3)], whose moment generating function is at most that of a
# normal variable: sinh(a t) / (a t) <= exp(t^2 / 2) for a = sqrt(3). So the product with a fixed vector e, whose
# sums over chunks are s, exceeds t |s| with a probability below 2 exp(-t^2 / 2), which is 3e-14 for t = 8; |s| is at
# most sqrt(chunk) |e|. Cauchy-Schwarz gives sqrt(3 d) |e|: certain, but thousands of different rows lie within that.
_SIGMAS = 8.0
_BOUND_OF_SQUARES = 122.0
_LARGEST = math.sqrt(3)
# torch.sum adds pairwise, with an error of at most log2(d) roundings (Higham 1993, doi:10.1137/0914050), and norms are
# taken of chunks first; the factor has room for the steps before and after. A matrix product adds one by one, and may
# round its input to tf32 or bfloat16.
_ROUNDING = 4.0
# The further vectors have a number for every column, unless rows are so long that this would take too much memory.
_MAX_WIDTH_OF_FURTHER = 1 << 19
# Seeds of the vectors outside the sketch; seeds of the sketch's vectors are the columns at which they begin.
_FURTHER, _POSITION, _ROUGH = -1, -2, -3
_kept: dict[tuple[int, int, int, torch.dtype, torch.device], Tensor] = {}  # the ones used last come last
_lock = Lock()


def chunk_of(width: int) -> int:
    """Return how many neighbouring columns of a row share a number of the sketch's random vectors."""
    return 64 if width >= 512 else 32 if width >= 256 else 1


def further_chunk_of(width: int) -> int:
    """Return how many neighbouring columns of a row share a number of the further random vectors."""
    return 1 if width <= _MAX_WIDTH_OF_FURTHER else chunk_of(width)


def random_vectors(offset: int, number: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return random numbers of mean 0 and variance 1, ``(number, width)``; the same for the same arguments.

    The vectors used last are kept, up to :data:`MAX_KEPT_BYTES` of them.
    """
    key = (offset, number, width, dtype, device)
    with _lock:
        vectors = _kept.pop(key, None)
        if vectors is None:
            # A separate generator, so that the random numbers of the training stay the same.
            generator = torch.Generator(CPU).manual_seed(0x5EED + offset)
            uniform = torch.rand(number, width, generator=generator, device=CPU, dtype=torch.float64)
            vectors = ((2 * uniform - 1) * _LARGEST).to(device, dtype)
            size = sum(each.nbytes for each in _kept.values()) + vectors.nbytes
            while _kept and size > MAX_KEPT_BYTES:
                size -= _kept.pop(next(iter(_kept))).nbytes
        _kept[key] = vectors
    return vectors


def further_vectors(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the further random vectors for rows of a width, one number per chunk, ``(NUM_FURTHER, c)``."""
    return random_vectors(_FURTHER, NUM_FURTHER, -(-width // further_chunk_of(width)), dtype, device)


def rough_vectors(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the random vectors that distinguish directions, one number per chunk, ``(NUM_ROUGH, c)``."""
    return random_vectors(_ROUGH, NUM_ROUGH, -(-width // further_chunk_of(width)), dtype, device)


def rough_reach(apart: float, width: int) -> float:
    """Bound the L2 distance of the products of two unit rows with the rough vectors, given the rows' distance.

    The squared L2 distance of the products is, relative to that of the rows, below a chi-squared variable with
    ``NUM_ROUGH`` degrees of freedom, which exceeds 80 with a probability of 5e-14.
    """
    reach = min(math.sqrt(80.0 * further_chunk_of(width)), math.sqrt(NUM_ROUGH * width) * _LARGEST)
    return reach * apart * 1.01 + 1e-3  # the margin exceeds the rounding of the products


def position_vector(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the first numbers of the vector that shows how far a row has moved, ``(min(width, PERIOD),)``."""
    return random_vectors(_POSITION, 1, min(width, PERIOD), dtype, device)[0]


@lru_cache(maxsize=1024)
def windows_of(tolerance: float, width: int, chunk: int, precision: float) -> tuple[float, float]:
    """Bound the differences of projections and norms of two rows that agree.

    Args:
        tolerance: relative L2 distance up to which rows agree.
        width: number of columns.
        chunk: number of neighbouring columns that share a number of the random vectors.
        precision: relative rounding of the arithmetic.

    Returns:
        The largest difference of the projections of the two rows divided by their norms, and of the logarithms of
        their norms.
    """
    rounding = _rounding(width, precision)
    reach = min(_SIGMAS * math.sqrt(chunk), _LARGEST * math.sqrt(width))
    return reach * _apart(tolerance) + rounding * math.sqrt(chunk), -math.log1p(-tolerance) + rounding


def joint_window_of(tolerance: float, width: int, chunk: int, precision: float) -> float:
    """Bound the L2 distance of all :data:`NUM_FURTHER` projections of two rows that agree.

    It takes the arguments of :func:`windows_of`. For random vectors as above, the sum of the squares exceeds 122 times
    that of the rows with a probability below 1e-16, by the same bound on moment generating functions:
    ``E exp(x s^2) <= (1 - 2 x) ** -0.5``.
    """
    reach = min(math.sqrt(_BOUND_OF_SQUARES * chunk), _LARGEST * math.sqrt(NUM_FURTHER * width))
    return reach * _apart(tolerance) + _rounding(width, precision) * math.sqrt(NUM_FURTHER * chunk)


def _apart(tolerance: float) -> float:
    """Bound the distance of the unit vectors of two rows that agree."""
    # |u_i - u_j| <= 2 |w_i - w_j| / (|w_i| + |w_j|) for unit vectors u (Dunkl and Williams 1964).
    return tolerance / (1 - tolerance / 2)


def _rounding(width: int, precision: float) -> float:
    """Bound the rounding error of a projection of a unit row, with a chunk of one."""
    return _ROUNDING * precision * (1 + math.log2(max(width, 1)))
