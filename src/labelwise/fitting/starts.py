"""Where a fit starts when nobody tells it: a coarse dictionary, and the model's own guess.

A likelihood with several optima needs several starts, and different ones. The dictionary covers the
bounds; its best entry for a voxel is the first start, and for each parameter the best entry of the
other half of that parameter's range is a further one. For IVIM at SNR 15 these four starts reach
the best known likelihood in 99.7 % of voxels; the best entry alone in 96.9 %, the four best in
98 % (they sit side by side).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from labelwise.models.base import SelfStarting, SignalModel
from labelwise.types import Parameter

ENTRIES = 256
"""At most this many entries: 6 x 6 x 6 for three parameters, 16 x 16 for two."""
BLOCK = 2048
"""Voxels compared with the dictionary at once."""


class Dictionary:
    """Signals on a grid over the bounds, to be compared with those of many voxels.

    Args:
        model: the signal model.
        parameters: its parameters, with the bounds of the fit.
        scale: the index of the parameter that multiplies the signal (solved, not searched), if any.
    """

    def __init__(
        self, model: SignalModel, parameters: tuple[Parameter, ...], scale: int | None
    ) -> None:
        searched = [i for i in range(len(parameters)) if i != scale]
        points = int(ENTRIES ** (1 / max(1, len(searched))) + 1e-9) // 2 * 2
        points = min(max(2, points), 64)
        axes = [_centres(parameters[i].bounds, points) for i in searched]
        entries = np.ones((len(parameters), points ** len(searched)))
        for i, values in zip(searched, np.meshgrid(*axes, indexing="ij"), strict=True):
            entries[i] = values.ravel()
        self.params = entries
        self.scale = scale
        self.shape = (points,) * len(searched)
        signal = np.stack([np.asarray(model.signal(*entry)) for entry in entries.T])
        usable = np.isfinite(signal).all(axis=1, keepdims=True)  # a model may overflow in a corner
        self.signal = np.where(usable, signal, 0.0)

    def starts(self, signal: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "P S N"]:
        """The best entry for each voxel, then the best in the other half of each searched range."""
        norm = np.sqrt(np.sum(self.signal**2, axis=1)) + 1e-30
        if self.scale is None:
            likeness = signal @ self.signal.T.astype(signal.dtype) - 0.5 * norm**2
        else:
            likeness = signal @ (self.signal.T / norm).astype(signal.dtype)
        picks = _diverse(likeness, self.shape)
        starts = self.params[:, picks]
        if self.scale is not None:
            starts[self.scale] = np.take_along_axis(likeness, picks.T, axis=1).T / norm[picks]
        return starts.astype(signal.dtype)


@eqx.filter_jit
def guesses(model: SelfStarting, signal: Float[np.ndarray, "N M"]) -> list[Float[Array, " N"]]:
    """The model's own guess for every voxel, one array per parameter."""
    guess = jax.vmap(model.guess)(signal)
    return [jnp.broadcast_to(rows, len(signal)) for rows in guess]


def find_starts(
    model: SignalModel, dictionary: Dictionary, signal: Float[np.ndarray, "N M"]
) -> Float[np.ndarray, "P S N"]:
    """All the starts that can be found for N voxels; bounds are not yet applied.

    Voxels are compared in full blocks: a matrix product rounds a row differently in another shape,
    and a voxel's estimate must not depend on how many others it came with.
    """
    found = []
    for block in (np.arange(-(-len(signal) // BLOCK) * BLOCK) % len(signal)).reshape(-1, BLOCK):
        starts = dictionary.starts(signal[block])
        if isinstance(model, SelfStarting):
            guess = np.nan_to_num(np.stack(guesses(model, signal[block])))
            starts = np.concatenate([starts, guess[:, None]], axis=1)
        found.append(starts)
    return np.concatenate(found, axis=-1)[..., : len(signal)]


def _centres(bounds: tuple[float, float], points: int) -> Float[np.ndarray, " points"]:
    """Cell centres between two bounds; logarithmic, over two decades at most, if they are wide."""
    lower, upper = bounds
    share = (np.arange(points) + 0.5) / points
    if lower >= 0 and upper > 50 * max(lower, 1e-12 * upper):
        lower = max(lower, upper / 100)
        return lower * (upper / lower) ** share
    return lower + share * (upper - lower)


def _diverse(likeness: Float[np.ndarray, "N D"], shape: tuple[int, ...]) -> np.ndarray:
    """(S, N) entries: the best, then for each axis the best in the half that it is not in."""
    voxels = np.arange(len(likeness))
    entries = np.arange(likeness.shape[1]).reshape(shape)
    picks = []
    for axis, points in enumerate(shape):
        halves = [np.take(entries, side, axis).ravel() for side in np.split(np.arange(points), 2)]
        best = np.stack([half[np.argmax(likeness[:, half], axis=1)] for half in halves])
        lower_wins = likeness[voxels, best[0]] >= likeness[voxels, best[1]]
        if axis == 0:
            picks.append(np.where(lower_wins, *best))
        picks.append(np.where(lower_wins, best[1], best[0]))
    return np.stack(picks) if picks else np.argmax(likeness, axis=1)[None]
