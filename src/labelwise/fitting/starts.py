"""Starting points of fits: entries of a coarse dictionary, and the guess of the model.

A likelihood with several optima needs several different starts. The optima of a signal model are
separated along the parameter that the acquisition determines worst (D_fast for IVIM). A voxel thus
starts from the best entry of the whole dictionary and from the best entry at each of three values
of that parameter; the best few entries of the dictionary would be neighbours. `benchmarks/mle.py`
measures the share of voxels in which they find the best known likelihood.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from labelwise.fitting.batching import blocks
from labelwise.models.base import SelfStarting, SignalModel
from labelwise.models.evaluate import signals
from labelwise.types import Parameter

ENTRIES = 256
"""Maximum number of entries: 6 x 6 x 6 for three parameters, 16 x 16 for two."""
BLOCK = 2048
"""Voxels compared with the dictionary in one block."""


class Dictionary:
    """Signals on a grid over the bounds, for comparison with measured signals.

    Args:
        model: the signal model.
        parameters: its parameters, with the bounds of the fit.
        scale: the index of the parameter that multiplies the signal (solved, not searched), if any.
    """

    def __init__(
        self, model: SignalModel, parameters: tuple[Parameter, ...], scale: int | None
    ) -> None:
        searched = [i for i in range(len(parameters)) if i != scale]
        points = min(64, max(2, int(ENTRIES ** (1 / max(1, len(searched))) + 1e-9)))
        axes = [_centres(parameters[i].bounds, points) for i in searched]
        self.scale = scale
        self.params = np.ones((len(parameters), points ** len(searched)))
        for i, values in zip(searched, np.meshgrid(*axes, indexing="ij"), strict=True):
            self.params[i] = values.ravel()
        signal = np.stack([np.asarray(model.signal(*entry), float) for entry in self.params.T])
        usable = np.isfinite(signal).all(axis=1, keepdims=True)  # a model may overflow in a corner
        self.signal = np.where(usable, signal, 0.0)
        shape = (points,) * len(searched)
        grid = np.moveaxis(np.arange(signal.shape[0]).reshape(shape), self._worst(shape), 0)
        self.strata = [grid.ravel()]
        if searched:
            values = {max(0, points * third // 3 - 1) for third in (1, 2, 3)}
            self.strata += [grid[value].ravel() for value in sorted(values)]

    def _worst(self, shape: tuple[int, ...]) -> int:
        """The axis of the parameter that is determined worst, with the others free."""
        if len(shape) < 2:
            return 0
        size = np.linalg.norm(self.signal, axis=1, keepdims=True) + 1e-30
        grid = self.signal / (size if self.scale is not None else size.max())
        grid = grid.reshape(*shape, -1)
        changes = list(np.gradient(grid, axis=tuple(range(len(shape)))))
        changes += [grid] if self.scale is not None else []
        slopes = np.stack(changes, axis=-2)
        information = slopes @ slopes.swapaxes(-1, -2) + 1e-9 * np.eye(len(changes))
        variance = np.diagonal(np.linalg.inv(information), axis1=-2, axis2=-1)
        return int(np.argmax(np.median(variance.reshape(-1, len(changes)), axis=0)[: len(shape)]))

    def starts(
        self, signal: Float[np.ndarray, "N M"], used: Bool[np.ndarray, "N M"] | None = None
    ) -> Float[np.ndarray, "P S N"]:
        """The best entry for each voxel: of the whole dictionary, and of each stratum.

        Measurements that are not `used` are 0, and so are the entries there.

        In float64: the rounding of a row in a matrix product depends on its position, which must
        not affect a float32 start.
        """
        dtype, signal = signal.dtype, signal.astype(float)
        norm = np.sqrt(np.sum(self.signal**2, axis=1)) + 1e-30
        if used is not None:
            norm = np.sqrt(used @ self.signal.T**2) + 1e-30
        if self.scale is None:
            similarity = signal @ self.signal.T - 0.5 * norm**2
        elif used is None:
            similarity = signal @ (self.signal.T / norm)
        else:
            similarity = signal @ self.signal.T / norm
        best = np.stack([s[np.argmax(similarity[:, s], axis=1)] for s in self.strata])
        starts = self.params[:, best]
        if self.scale is not None:
            norm = np.broadcast_to(norm, similarity.shape)
            starts[self.scale] = (
                np.take_along_axis(similarity, best.T, 1) / np.take_along_axis(norm, best.T, 1)
            ).T
        return starts.astype(dtype)


def find_starts(
    model: SignalModel,
    dictionary: Dictionary,
    signal: Float[np.ndarray, "N M"],
    used: Bool[np.ndarray, "N M"] | None = None,
) -> Float[np.ndarray, "P S N"]:
    """All starts for N voxels, before clipping to the bounds.

    The model's guess needs all measurements: one that is not `used` (all are if None) is replaced
    by that of the best entry.

    Guesses are computed in full blocks: rounding in a compiled program depends on its shapes, and
    the estimate of a voxel must not depend on the number of others.
    """
    found = []
    for _, rows in blocks(len(signal), BLOCK):
        here, of = signal[rows], None if used is None else used[rows]
        starts = dictionary.starts(here, of)
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


def _centres(bounds: tuple[float, float], points: int) -> Float[np.ndarray, " points"]:
    """Cell centres between two bounds; logarithmic, over two decades at most, if they are wide."""
    lower, upper = bounds
    share = (np.arange(points) + 0.5) / points
    if lower >= 0 and upper > 50 * max(lower, 1e-12 * upper):
        lower = max(lower, upper / 100)
        return lower * (upper / lower) ** share
    return lower + share * (upper - lower)
