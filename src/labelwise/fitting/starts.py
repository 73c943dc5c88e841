"""Starting points of fits: entries of a coarse dictionary, and the guess of the model.

A likelihood with several optima needs several different starts. For each value of each parameter,
the best entry of the dictionary is found; a voxel starts from the local maxima of these profiles
and from their ends, unless they are much worse than the best entry. Parameters that enter the
signal linearly (S0, and f of IVIM) are solved for every entry instead of searched.
`benchmarks/search.py` measures the share of voxels that reach the best known likelihood.

More than `log2(ENTRIES)` searched parameters leave no two values for each. Then the entries are
spread at random over the bounds (a Latin hypercube); a model with a guess has only one entry beside
it, in the middle of the typical ranges.

Source of the separation: Golub & Pereyra 2003, doi:10.1088/0266-5611/19/2/201.
"""

import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.fitting.batching import by_block, in_chunks
from labelwise.fitting.newton import solve_symmetric
from labelwise.models.base import SelfStarting, SignalModel, detached, within
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel
from labelwise.types import Parameter

ENTRIES = 256
"""Maximum number of entries: 6 x 6 x 6 for three searched parameters, 16 x 16 for two."""
KINKED_ENTRIES = 4096
"""The same if the signal has kinks."""
MAXIMA = 4
"""Maximum number of entries that a voxel starts from."""
GAP = 6.0
"""An entry is no start if its nll is higher than the best by more than this, and by more than the
spacing of the dictionary explains."""
END = 0.15
"""The same for the ends of the profiles: other parameters may have no effect there."""
INSIDE = 0.05
"""Linear parameters start no nearer to a bound, as a share of its width: on it, others may have no
effect."""
FINE, FLOOR, ANCHORS = 65, 0.3, (0.2, 0.5, 0.8)
"""Fine points of an axis, its share that is spread evenly, and where the other parameters lie."""


class Dictionary:
    """Signals on a grid over the bounds, for comparison with measured signals.

    An entry is the signal scale · (A + Σ t B) with A and B at one node of the grid, where t are the
    linear parameters, between 0 and 1 for their bounds.

    Args:
        model: the signal model.
        parameters: its parameters, with the bounds of the fit.
        scale: the index of the parameter that multiplies the signal, if any.
        kinked: whether the signal has kinks, between which there may be narrow optima.
    """

    def __init__(
        self,
        model: SignalModel,
        parameters: tuple[Parameter, ...],
        scale: int | None,
        kinked: bool = False,
    ) -> None:
        self.model = detached(model)
        self.scale = scale
        self.linear = _linear(model, parameters, scale)
        self.bounds = np.array([p.bounds for p in parameters])
        searched = [i for i in range(len(parameters)) if i not in (scale, *self.linear)]
        entries = KINKED_ENTRIES if kinked else ENTRIES
        points = max(2, int(entries ** (1 / max(1, len(searched))) + 1e-9))
        shape = (points,) * len(searched) or (1,)
        if points ** len(searched) <= entries:
            axes = [self._axis(model, i, searched, points) for i in searched]
            grid = np.meshgrid(*axes, indexing="ij")
        elif isinstance(model, SelfStarting):
            shape = (1,)
            grid = [np.mean(parameters[i].typical or parameters[i].bounds) for i in searched]
        else:
            shape, rng = (entries,), np.random.default_rng(0)
            grid = [rng.permutation(self._axis(model, i, searched, entries)) for i in searched]
        params = np.ones((len(parameters), int(np.prod(shape))))
        for i, values in zip(searched, grid, strict=True):
            params[i] = np.ravel(values)
        self.shape, self.params = shape, params
        terms = self._terms(model, params)
        table = self._table(terms)
        self.terms = terms.astype(np.float32)
        self.gram, self.spacing = table[0][..., None], table[1]

    def _terms(
        self, model: SignalModel, params: Float[np.ndarray, "P K"]
    ) -> Float[np.ndarray, "1+L K M"]:
        """A and the B of entries."""
        params = params.copy()
        params[self.linear] = self.bounds[self.linear, :1]
        terms = [signals(model, params.T)]
        for i in self.linear:
            moved = params.copy()
            moved[i] = self.bounds[i, 1]
            terms.append(signals(model, moved.T))
        # a model may overflow in a corner; squares are stored in float32
        usable = np.all(np.abs(terms) < 1e15, axis=(0, 2))
        terms = np.where(usable[:, None], terms, 0.0)
        terms[1:] -= terms[0]
        return terms

    def _table(self, terms: Float[np.ndarray, "1+L K M"]) -> list[Float[np.ndarray, "*n K"]]:
        """The products of the terms of each entry, and the spacing."""
        first = 0 if self.scale is not None else 1
        gram = np.einsum("ikm,jkm->kij", terms, terms)
        spacing = _spacing(terms, _inverse(gram, first), self.shape, first)
        spacing = np.minimum(spacing, 1e30)  # infinite beside an entry without a signal
        return [np.moveaxis(gram, 0, -1).astype(np.float32), spacing.astype(np.float32)]

    def _axis(
        self, model: SignalModel, index: int, searched: list[int], points: int
    ) -> Float[np.ndarray, " points"]:
        """Values of a parameter between which the signal changes by about the same amount."""
        lower, upper = self.bounds[index]
        share = np.linspace(0, 1, FINE)
        if lower > 0 and upper > 5 * lower:
            values = lower * (upper / lower) ** share
        else:
            values = lower + (upper - lower) * share ** (3 if lower == 0 else 1)
        first = 0 if self.scale is not None else 1
        density = np.full(FINE - 1, 1e-300)
        for anchor in ANCHORS:
            params = np.ones((len(self.bounds), FINE))
            for i in searched:
                params[i] = within(tuple(self.bounds[i]), anchor)
            params[index] = values
            terms = self._terms(model, params)
            inverse = _inverse(np.einsum("ikm,jkm->kij", terms, terms), first)
            signal = terms[0] + 0.5 * terms[1:].sum(axis=0)
            size = np.linalg.norm(signal, axis=1)[1:] if first == 0 else 1.0
            rest = _unexplained(np.diff(signal, axis=0), terms[first:, 1:], inverse[1:])
            density += np.sqrt(rest) / (size + 1e-30)
        density = density / density.sum() + FLOOR / (FINE - 1)
        path = np.concatenate([[0], np.cumsum(density)])
        return np.interp(np.linspace(0, path[-1], points), path, values)

    def starts(
        self,
        noise: NoiseModel,
        data: Float[np.ndarray, "M N"],
        sigma: Float[np.ndarray, "#M N"],
    ) -> Float[np.ndarray, "P S N"]:
        """Where to start the fits of N voxels, the best first; NaN if fewer than S."""
        tables = self.terms, self.gram, self.spacing
        middle = [within(tuple(bounds), 0.5) for bounds in self.bounds]
        values = (self.params, self.bounds[self.linear], np.array(middle))
        values = jax.tree.map(lambda rows: rows.astype(data.dtype), values)
        layout = self.shape, self.scale, tuple(self.linear)
        guess = self.model if isinstance(self.model, SelfStarting) else None
        return in_chunks(
            lambda n, x: _search(layout, guess, noise, tables, values, n, x), (data, sigma)
        )


@eqx.filter_jit
def _search(layout, guess, noise, tables, values, blocks, arrays):
    """The starts, with the guess as the last one.

    A guess needs all measurements: one that is left out is replaced by that of the best entry.
    """
    shape, scale, linear = layout
    terms, (params, bounds, middle) = tables[0], values

    def block(arrays):
        data, sigma = arrays
        found, amplitude, shares = _entries(shape, scale, noise, tables, data, sigma)
        at = jnp.maximum(found, 0)
        rows = list(params[:, at])
        for i, (low, high), share in zip(linear, bounds, shares, strict=True):
            rows[i] = low + share * (high - low)
        if scale is not None:
            rows[scale] = amplitude
        starts = jnp.where(found < 0, jnp.nan, jnp.stack(rows))
        lost = ~jnp.isfinite(starts[:, 0]).all(axis=0)  # no usable entry: bounds of 1e16, say
        starts = starts.at[:, 0].set(jnp.where(lost, middle[:, None], starts[:, 0]))
        if guess is None:
            return starts
        if len(sigma) > 1:
            nearest = terms[0][at[0]]
            for share, rows in zip(shares, terms[1:], strict=True):
                nearest = nearest + share[0][:, None] * rows[at[0]]
            data = jnp.where(sigma < sigma.min(axis=0) * 1e6, data, (amplitude[0] * nearest.T))
        rows = jax.vmap(guess.guess, in_axes=-1)(data)
        rows = jnp.stack([jnp.broadcast_to(row, data.shape[1:]) for row in rows])
        rows = jnp.where(jnp.isnan(rows).all(axis=0), jnp.nan, jnp.nan_to_num(rows))
        return jnp.concatenate([starts, rows[:, None]], axis=1)

    return by_block(block, blocks, arrays)


def _entries(shape, scale, noise, tables, data, sigma):
    """The entries (S, W) to start from, -1 for none, with their amplitudes and linear shares."""
    scaled, (terms, gram, spacing) = scale is not None, tables
    clean = noise.signal_of(data, sigma)
    if noise.magnitude:  # without an amplitude, the likelihood has no slope
        clean = jnp.maximum(clean, 0.1 * data)
    precision = 1 / (sigma * sigma)
    if len(sigma) > 1:  # each measurement has its own weight, which is 0 if it is left out
        weight = precision / jnp.max(precision, axis=0)
        clean = jnp.where(precision > 1e-20, weight * clean, 0.0)
        gram = _product(terms[:, None] * terms[None], weight)
        size = jnp.sum(clean**2 / jnp.maximum(weight, 1e-20), axis=0)
    else:
        size = jnp.sum(clean**2, axis=0)
    tolerance = 2 * GAP / jnp.max(precision, axis=0)
    handicap = tolerance * (1 - END / GAP)
    if noise.magnitude:  # sums of squares do not rank entries well at the noise floor
        handicap = handicap * (1 - jnp.mean(data < 3 * sigma, axis=0))
    products = _product(terms, clean)
    explained = jnp.asarray(_solve(scaled, products, gram)[2])
    grid = explained.reshape(*shape, -1)
    bits = max(1, int(shape[0] - 1).bit_length())  # of a coordinate of an entry in its code
    shifts = [bits * axis for axis in reversed(range(len(shape)))]
    code = np.sum([p << s for p, s in zip(np.indices(shape), shifts, strict=True)], axis=0)
    height, codes = [], []
    for axis in range(len(shape)):
        rows = jnp.moveaxis(grid, axis, 0).reshape(shape[axis], -1, grid.shape[-1])
        names = np.moveaxis(code, axis, 0).reshape(shape[axis], -1, 1)
        profile = jnp.max(rows, axis=1)
        best = jnp.max(jnp.where(rows == profile[:, None], names, -1), axis=1)
        outside = jnp.full_like(profile[:1], -jnp.inf)
        behind = jnp.concatenate([outside, profile[:-1]])
        ahead = jnp.concatenate([profile[1:], outside])
        peak = (profile >= behind) & (profile > ahead)
        end = jnp.isinf(behind) | jnp.isinf(ahead)
        height.append(jnp.where(peak, profile, jnp.where(end, profile - handicap, -jnp.inf)))
        codes.append(best)
    height, codes = jnp.concatenate(height), jnp.concatenate(codes)

    def places(code):
        return [(code >> shift) & ((1 << bits) - 1) for shift in shifts]

    strides = [len(explained) // shape[0] ** (axis + 1) for axis in range(len(shape))]
    best, found, place = jnp.max(height, axis=0), [], places(codes)
    for _ in range(MAXIMA):
        top = jnp.max(height, axis=0)
        chosen = places(jnp.max(jnp.where(height == top, codes, -1), axis=0))
        entry = sum(x * n for x, n in zip(chosen, strides, strict=True))
        allowed = tolerance + spacing[entry] * (size if scaled else 1.0)
        found.append(jnp.where((best - top <= allowed) & (top > -jnp.inf), entry, -1))
        near = [jnp.abs(a - b) <= 1 for a, b in zip(place, chosen, strict=True)]
        height = jnp.where(functools.reduce(operator.and_, near), -jnp.inf, height)
    found = jnp.stack(found)
    at = jnp.maximum(found, 0)
    amplitude, shares, _ = _solve(scaled, _at(products, at), _at(gram, at))
    return found, amplitude, [jnp.clip(share, INSIDE, 1 - INSIDE) for share in shares]


def _product(rows: Float[Array, "*k K M"], data: Float[Array, "M W"]) -> Float[Array, "*k K W"]:
    """The sums over the measurements."""
    flat = rows.reshape(-1, rows.shape[-1])
    found = jax.lax.dot(flat, data, precision="highest")
    return found.reshape(*rows.shape[:-1], -1)


def _at(rows, entries):
    """The rows (.., K, N) or (.., K, 1) of entries (S, N), for each voxel."""
    if rows.shape[-1] == 1:
        return rows[..., 0][..., entries]
    return jnp.take_along_axis(rows, entries.reshape((1,) * (rows.ndim - 2) + entries.shape), -2)


def _solve(scaled, products, gram):
    """The best amplitude and shares t of the linear terms, and twice the gain in the square sum."""
    count, first = len(products), 0 if scaled else 1
    matrix = {
        (i - first, j - first): gram[i, j] for i in range(first, count) for j in range(first, i + 1)
    }
    target = [products[i] if scaled else products[i] - gram[0, i] for i in range(first, count)]
    best = solve_symmetric(matrix, target)
    if scaled:
        edge = [jnp.where(x > 0, 1.0, 0.0) for x in best]
        best = [jnp.where(best[0] > 0, x / best[0], e) for x, e in zip(best, edge, strict=True)][1:]
    t = [jnp.ones_like(products[0]), *(jnp.clip(x, 0.0, 1.0) for x in best)]
    along = sum(x * row for x, row in zip(t, products, strict=True))
    square = sum(t[i] * t[j] * gram[i, j] for i in range(count) for j in range(count))
    if not scaled:
        return jnp.ones_like(along), t[1:], 2 * along - square
    along = jnp.maximum(along, 0.0)
    amplitude = along / (square + 1e-30)
    return amplitude, t[1:], amplitude * along


def _linear(model: SignalModel, parameters: tuple[Parameter, ...], scale: int | None) -> list[int]:
    """The parameters that the signal is jointly linear in, apart from the scale; by trial."""

    def signal(anchor, *moved):
        params = [within(p.bounds, share) for p, share in zip(parameters, anchor, strict=True)]
        for index, share in moved:
            params[index] = within(parameters[index].bounds, share)
        rows = np.asarray(model.signal(*params), float)
        return np.where(np.isfinite(rows), rows, 1e300)  # overflow is not linear

    found = []
    count = len(parameters)
    anchors = [[(share + 0.17 * i) % 0.9 + 0.05 for i in range(count)] for share in (0.1, 0.4, 0.7)]
    for index in range(count):
        if index == scale:
            continue
        linear, seen = True, False
        for anchor in anchors:
            low, middle, high = (signal(anchor, (index, share)) for share in (0.0, 0.5, 1.0))
            close = 1e-5 * np.max(np.abs([low, middle, high]))
            curved = [low - 2 * middle + high]
            for other in found:
                ends = [signal(anchor, (index, x), (other, y)) for x in (0, 1) for y in (0, 1)]
                curved.append(ends[0] - ends[1] - ends[2] + ends[3])
            linear &= bool(np.max(np.abs(curved)) <= close)
            seen |= bool(np.max(np.abs(high - low)) > 100 * close)
        if linear and seen:
            found.append(index)
    return found


def _spacing(
    terms: Float[np.ndarray, "1+L K M"],
    inverse: Float[np.ndarray, "K n n"],
    shape: tuple[int, ...],
    first: int,
) -> Float[np.ndarray, " K"]:
    """A quarter of the squared distances of each entry to its farther neighbours, summed.

    Without what the amplitude and the linear parameters explain; relative to the squared entry if
    it is scaled.
    """
    signal = terms[0] + 0.5 * terms[1:].sum(axis=0)
    grid = signal.reshape(*shape, -1)
    total = np.zeros(len(signal))
    for axis in range(len(shape)):
        steps = np.zeros((2, *grid.shape))
        index = [slice(None)] * len(shape)
        for row, part in enumerate((slice(0, -1), slice(1, None))):
            index[axis] = part
            steps[(row, *index)] = np.diff(grid, axis=axis)
        steps = steps.reshape(2, len(signal), -1)
        total += 0.25 * np.maximum(*(_unexplained(s, terms[first:], inverse) for s in steps))
    return total / (np.sum(signal**2, axis=1) + 1e-30) if first == 0 else total


def _inverse(gram: Float[np.ndarray, "*K m m"], first: int) -> Float[np.ndarray, "*K n n"]:
    """The inverse of the products of those terms of each entry that are solved."""
    solved = gram[..., first:, first:]
    ridge = 1e-9 * np.trace(solved, axis1=-2, axis2=-1) + 1e-30
    return np.linalg.inv(solved + ridge[..., None, None] * np.eye(solved.shape[-1]))


def _unexplained(
    step: Float[np.ndarray, "K M"],
    terms: Float[np.ndarray, "n K M"],
    inverse: Float[np.ndarray, "K n n"],
) -> Float[np.ndarray, " K"]:
    """The squared length of a change of signal without what the solved terms explain."""
    along = np.einsum("nkm,km->kn", terms, step)
    explained = np.einsum("kn,knl,kl->k", along, inverse, along)
    return np.maximum(np.sum(step**2, axis=1) - explained, 0)
