"""Starting points of fits: entries of a coarse dictionary, and the guess of the model.

A likelihood with several optima needs several different starts. For each value of each parameter,
the best entry of the dictionary is found; a voxel starts from the local maxima of these profiles
and from their ends, unless they are much worse than the best entry. Parameters that enter the
signal linearly (S0, and f of IVIM) are solved for every entry instead of searched.
`benchmarks/search.py` measures the share of voxels that reach the best known likelihood.

Source of the separation: Golub & Pereyra 2003, doi:10.1088/0266-5611/19/2/201.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from labelwise.fitting.batching import blocks
from labelwise.models.base import SelfStarting, SignalModel, within
from labelwise.models.evaluate import signals
from labelwise.noise import NoiseModel
from labelwise.types import Parameter

ENTRIES = 512
"""Maximum number of entries: 8 x 8 x 8 for three searched parameters, 22 x 22 for two."""
MAXIMA = 4
"""Maximum number of entries that a voxel starts from."""
GAP = 6.0
"""An entry is no start if its nll is higher than the best by more than this, and by more than the
spacing of the dictionary explains."""
INSIDE = 0.05
"""Linear parameters start no nearer to a bound, as a share of its width: on it, others may have no
effect."""
FINE, FLOOR, ANCHORS = 65, 0.3, (0.2, 0.5, 0.8)
"""Fine points of an axis, its share that is spread evenly, and where the other parameters lie."""
BLOCK = 2048
"""Voxels compared with the dictionary in one block."""


class Dictionary:
    """Signals on a grid over the bounds, for comparison with measured signals.

    An entry is the signal scale · (A + Σ t B) with A and B at one node of the grid, where t are the
    linear parameters, between 0 and 1 for their bounds.

    Args:
        model: the signal model.
        parameters: its parameters, with the bounds of the fit.
        scale: the index of the parameter that multiplies the signal, if any.
    """

    def __init__(
        self, model: SignalModel, parameters: tuple[Parameter, ...], scale: int | None
    ) -> None:
        self.scale = scale
        self.linear = _linear(model, parameters, scale)
        self.bounds = np.array([p.bounds for p in parameters])
        searched = [i for i in range(len(parameters)) if i not in (scale, *self.linear)]
        points = min(64, max(2, int(ENTRIES ** (1 / max(1, len(searched))) + 1e-9)))
        axes = [self._axis(model, i, searched, points) for i in searched]
        shape = (points,) * len(searched) or (1,)
        params = np.ones((len(parameters), int(np.prod(shape))))
        for i, values in zip(searched, np.meshgrid(*axes, indexing="ij"), strict=True):
            params[i] = values.ravel()
        self.shape, self.params, self.terms = shape, params, self._terms(model, params)
        self.table = [rows[..., None] for rows in self._table(self.terms)]

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
        """The products of the terms of each entry, their inverse, and the spacing."""
        first = 0 if self.scale is not None else 1
        gram = np.einsum("ikm,jkm->kij", terms, terms)
        inverse = _inverse(gram, first)
        spacing = _spacing(terms, inverse, self.shape, first)
        rows = (np.moveaxis(gram, 0, -1), np.moveaxis(inverse, 0, -1))
        rows = (*rows, np.minimum(spacing, 1e30))  # infinite beside an entry without a signal
        return [array.astype(np.float32) for array in rows]

    def _products(self, used: Bool[np.ndarray, "N M"]) -> list[Float[np.ndarray, "n n K N"]]:
        """The products of the terms over the used measurements of N voxels, and their inverse."""
        patterns, which = np.unique(used, axis=0, return_inverse=True)
        every = np.einsum("ikm,jkm->kijm", self.terms, self.terms)
        gram = np.moveaxis(every @ patterns.T.astype(float), -1, 0)
        rows = gram, _inverse(gram, 0 if self.scale is not None else 1)
        return [
            np.moveaxis(r, (0, 1), (-1, -2)).astype(np.float32)[..., which.ravel()] for r in rows
        ]

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
        signal: Float[np.ndarray, "N M"],
        sigma: Float[np.ndarray, "N #M"],
        used: Bool[np.ndarray, "N M"] | None = None,
    ) -> Float[np.ndarray, "P S N"]:
        """The local maxima of the profiles of N voxels, the best first; NaN if fewer than S.

        Measurements that are not `used` (all are if None) are 0, and so are the entries there.

        The products are in float64 and rounded to float32: the rounding of a row in a matrix
        product depends on its position, which must not affect a start.
        """
        wide = signal.astype(float)
        products = (self.terms @ wide.T).astype(np.float32)
        table, counted = self.table, True
        if used is not None:
            table, counted = [*self._products(used), self.table[2]], used
        tolerance = 2 * GAP / np.mean(1.0 / sigma.astype(float) ** 2, axis=1, where=counted)
        size = np.sum(wide**2, axis=1) if self.scale is not None else np.ones(len(wide))
        limits = tolerance.astype(np.float32), size.astype(np.float32)
        scaled = self.scale is not None
        found, amplitude, shares = _search(self.shape, scaled, products, *table, *limits)
        starts = self.params[:, found]
        shares = np.clip(np.asarray(shares), INSIDE, 1 - INSIDE)
        for i, share in zip(self.linear, shares, strict=True):
            starts[i] = self.bounds[i, 0] + share * (self.bounds[i, 1] - self.bounds[i, 0])
        if self.scale is not None:
            starts[self.scale] = amplitude
        starts[:, np.asarray(found) < 0] = np.nan
        return starts.astype(signal.dtype)


@partial(jax.jit, static_argnums=(0, 1))
def _search(shape, scaled, products, gram, inverse, spacing, tolerance, size):
    """The entries (S, N) to start from, -1 for none, with their amplitudes and linear shares."""
    amplitude, shares, explained = _solve(scaled, products, gram, inverse)
    explained = jnp.asarray(explained)
    grid = explained.reshape(*shape, -1)
    entry = jnp.arange(len(explained)).reshape(shape)
    height, entries = [], []
    for axis in range(len(shape)):
        rows = jnp.moveaxis(grid, axis, 0).reshape(shape[axis], -1, grid.shape[-1])
        profile, inner = jnp.max(rows, axis=1), jnp.argmax(rows, axis=1)
        outside = jnp.full_like(profile[:1], -jnp.inf)
        behind = jnp.concatenate([outside, profile[:-1]])
        ahead = jnp.concatenate([profile[1:], outside])
        end = jnp.isinf(behind) | jnp.isinf(ahead)
        peak = end | ((profile >= behind) & (profile > ahead))
        height.append(jnp.where(peak, profile, -jnp.inf))
        names = jnp.moveaxis(entry, axis, 0).reshape(shape[axis], -1)
        entries.append(jnp.take_along_axis(names, inner, axis=1))
    height, entries = jnp.concatenate(height), jnp.concatenate(entries)
    best, found = jnp.max(height, axis=0), []
    place = jnp.stack(jnp.unravel_index(entries, shape))
    for _ in range(MAXIMA):
        outer = jnp.argmax(height, axis=0)[None]
        chosen = jnp.take_along_axis(entries, outer, axis=0)
        lost = best - jnp.max(height, axis=0)
        found.append(jnp.where(lost <= tolerance + _at(spacing, chosen) * size, chosen, -1))
        apart = jnp.abs(place - jnp.stack(jnp.unravel_index(chosen, shape)))
        height = jnp.where(jnp.all(apart <= 1, axis=0), -jnp.inf, height)
    found = jnp.concatenate(found)
    at = jnp.maximum(found, 0)
    amplitude, shares, _ = _solve(scaled, *(_at(rows, at) for rows in (products, gram, inverse)))
    return found, amplitude, shares


def _at(rows, entries):
    """The rows (.., K, N) or (.., K, 1) of entries (S, N), for each voxel."""
    entries = entries.reshape((1,) * (rows.ndim - 2) + entries.shape)
    return jnp.take_along_axis(rows, entries, axis=-2)


def _solve(scaled, products, gram, inverse):
    """The best amplitude and shares t of the linear terms, and twice the gain in the square sum."""
    count = len(products)
    if scaled:
        best = [sum(inverse[i, j] * products[j] for j in range(count)) for i in range(count)]
        edge = [jnp.where(x > 0, 1.0, 0.0) for x in best]
        t = [jnp.where(best[0] > 0, x / best[0], e) for x, e in zip(best, edge, strict=True)]
    else:
        rest = [products[j] - gram[0, j] for j in range(1, count)]
        t = [sum(row[j] * x for j, x in enumerate(rest)) for row in inverse]
        t = [None, *t]
    t = [jnp.ones_like(products[0]), *(jnp.clip(x, 0.0, 1.0) for x in t[1:])]
    along = sum(x * row for x, row in zip(t, products, strict=True))
    square = sum(t[i] * t[j] * gram[i, j] for i in range(count) for j in range(count))
    if not scaled:
        return jnp.ones_like(along), t[1:], 2 * along - square
    along = jnp.maximum(along, 0.0)
    amplitude = along / (square + 1e-30)
    return amplitude, t[1:], amplitude * along


def find_starts(
    model: SignalModel,
    noise: NoiseModel,
    dictionary: Dictionary,
    signal: Float[np.ndarray, "N M"],
    sigma: Float[np.ndarray, "N #M"],
    used: Bool[np.ndarray, "N M"] | None = None,
) -> Float[np.ndarray, "P S N"]:
    """All starts for N voxels, before clipping to the bounds; NaN where there are fewer than S.

    The model's guess needs all measurements: one that is not `used` (all are if None) is replaced
    by that of the best entry.

    Starts are found in full blocks: rounding in a compiled program depends on its shapes, and
    the estimate of a voxel must not depend on the number of others.
    """
    found = []
    for _, rows in blocks(len(signal), BLOCK):
        here, of = signal[rows], None if used is None else used[rows]
        clean = np.asarray(noise.signal_of(here, sigma[rows]))
        if noise.magnitude:  # without an amplitude, the likelihood has no slope
            clean = np.maximum(clean, 0.1 * here)
        if of is not None:
            clean = np.where(of, clean, 0)
        starts = dictionary.starts(clean.astype(signal.dtype), sigma[rows], of)
        if isinstance(model, SelfStarting):
            if of is not None:
                nearest = signals(model, starts[:, 0].T.astype(float))
                here = np.where(of, here, np.nan_to_num(nearest)).astype(here.dtype)
            guess = np.nan_to_num(np.stack(_guesses(model, jnp.asarray(here))))
            starts = np.concatenate([starts, guess[:, None]], axis=1)
        found.append(starts)
    return np.concatenate(found, axis=-1)[..., : len(signal)]


@eqx.filter_jit
def _guesses(model: SelfStarting, signal: Float[Array, "N M"]) -> list[Float[Array, " N"]]:
    guess = jax.vmap(model.guess)(signal)
    return [jnp.broadcast_to(rows, len(signal)) for rows in guess]


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
