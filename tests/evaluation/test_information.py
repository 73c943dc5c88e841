"""Information in estimates, where arithmetic is at its limits."""

import numpy as np
import pytest

from labelwise.evaluation.information import retained_information


@pytest.mark.parametrize("repeats", [12, 24, 50])
def test_estimates_that_hardly_ever_vary_warn_of_nothing(repeats):
    """Without the repeats that vary, what is left of the variance can be below 0 by rounding."""
    rng = np.random.default_rng(repeats)
    estimates = np.tile(rng.uniform(size=(500, 1, 2)), (1, repeats, 1))
    estimates[:, 0] += 1e-3 * rng.normal(size=(500, 2))
    score = rng.normal(size=estimates.shape)
    good = np.ones(estimates.shape[:2], bool)
    fisher = np.broadcast_to(np.eye(2), (500, 2, 2))
    share, error = retained_information(estimates, score, good, fisher)
    assert np.isfinite(share).all()
    assert np.isfinite(error).all()
