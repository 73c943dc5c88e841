"""Priors: ranges, determinism, what is kept of real voxels, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy import stats

from labelwise import ADC, IVIM, T2EPG, Kurtosis, Parameter, SignalModel, per_measurement
from labelwise.priors import Empirical, Grid, Population, Tissue, Uniform

KEY = jax.random.key(3)
RNG = np.random.default_rng(5)
CORRELATED = RNG.multivariate_normal([1, 0.3, 2], [[1, 0.8, 0], [0.8, 1, -0.5], [0, -0.5, 1]], 400)
PRIORS = {
    "uniform": Uniform({"A": (0.8, 1.2), "B": (10, 150), "C": (3, 3)}),
    "logarithmic": Uniform({"A": (0.8, 1.2), "B": (10, 150), "C": (3, 3)}, ["B"]),
    "grid": Grid({"A": [0.8, 1.2], "B": np.linspace(10, 150, 7), "C": [3.0]}),
    "empirical": Empirical(CORRELATED, ("A", "B", "C")),
}
RANGES = {"S0": (0.8, 1.2), "D": (0.2, 3.5), "K": (0.0, 2.0)}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


class Offset(SignalModel):
    """No parameter multiplies the whole signal; one has no upper bound, one a typical range."""

    t: Float[Array, " M"] = per_measurement()
    parameters = (
        Parameter("A", "a.u.", (0, 10), "A", (2, 3)),
        Parameter("B", "a.u.", (0, np.inf)),
        Parameter("R", "1/ms", (0.1, 5)),
    )

    def signal(self, a, b, r):
        return a + b * jnp.exp(-r * self.t)


@every_prior
def test_same_key_same_bytes_and_another_key_others(prior):
    first = prior.sample(KEY, 500)
    assert first.tobytes() == prior.sample(KEY, 500).tobytes()
    assert first.tobytes() != prior.sample(jax.random.key(4), 500).tobytes()


@every_prior
def test_draws_are_float32_finite_and_within_the_ranges(prior):
    draws = prior.sample(KEY, 2000)
    assert (draws.shape, draws.dtype) == ((2000, 3), np.float32)
    low, high = prior.ranges.T.astype(np.float32)
    assert np.all((draws >= low) & (draws <= high))
    assert prior.ranges.dtype == np.float64


@every_prior
def test_the_setting_of_float64_changes_no_byte(prior):
    with jax.enable_x64(True):
        wide = prior.sample(KEY, 100)
    assert wide.tobytes() == prior.sample(KEY, 100).tobytes()


@every_prior
def test_description_is_json_and_ranges_cannot_be_written(prior):
    said = prior.describe()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    with pytest.raises(ValueError, match="read-only"):
        prior.ranges[0, 0] = 7


def test_uniform_is_uniform_and_independent():
    draws = Uniform({"A": (0.8, 1.2), "B": (10, 150)}).sample(KEY, 20_000)
    assert stats.kstest(draws[:, 0], stats.uniform(0.8, 0.4).cdf).pvalue > 0.01
    assert stats.kstest(draws[:, 1], stats.uniform(10, 140).cdf).pvalue > 0.01
    assert abs(np.corrcoef(draws.T)[0, 1]) < 4 / np.sqrt(20_000)


def test_a_logarithmic_range_is_uniform_in_its_logarithm():
    draws = Uniform({"A": (0.8, 1.2), "B": (2, 300)}, ["B"]).sample(KEY, 20_000)
    assert stats.kstest(draws[:, 0], stats.uniform(0.8, 0.4).cdf).pvalue > 0.01
    logs = np.log(draws[:, 1])
    assert stats.kstest(logs, stats.uniform(np.log(2), np.log(150)).cdf).pvalue > 0.01


def test_paper_ranges_are_those_of_the_ivim_model():
    paper = Uniform.paper()
    assert paper.names == tuple(parameter.name for parameter in IVIM.parameters)
    assert paper.ranges.tolist() == [[0.8, 1.2], [0.1, 0.5], [0.4, 3.0], [10, 150]]


@pytest.mark.parametrize(
    ("model", "overrides", "expected"),
    [
        (Offset([0, 1]), {}, [[2, 3], [0.8, 1.2], [0.1, 5]]),
        (Offset([0, 1]), {"R": (1, 2), "B": (5, 6)}, [[2, 3], [5, 6], [1, 2]]),
        (
            ADC([0, 1]),
            {"ADC": (0.5, 2)},
            [[0.8, 1.2], [0.5, 2]],
        ),
        (T2EPG([10, 20, 30]), {"T2": (20, 200), "B1": (0.6, 1)}, [[0.8, 1.2], [20, 200], [0.6, 1]]),
    ],
    ids=["typical", "overridden", "scale", "black box"],
)
def test_typical_ranges(model, overrides, expected):
    assert Uniform.typical(model, **overrides).ranges.tolist() == expected


def test_typical_draws_are_those_for_which_the_equation_holds():
    model = Kurtosis([0, 1.0, 2.0])
    prior, box = Uniform.typical(model), Uniform(RANGES)
    draws, others = prior.sample(KEY, 20_000), box.sample(KEY, 20_000)
    good = model.holds(*others.T)
    assert 0.3 < good.mean() < 0.7
    np.testing.assert_array_equal(draws[good], others[good])
    assert model.holds(*draws.T).all()
    for column in (1, 2):
        assert stats.ks_2samp(draws[~good, column], others[good, column]).pvalue > 0.01
    assert prior.describe() == {**box.describe(), "where": "Kurtosis holds"}


def test_a_tissue_leaves_out_what_the_equation_does_not_describe_if_there_is_more():
    model = Kurtosis([0, 1.0, 2.0])
    wide = Population(Tissue(RANGES), model.parameters, model).sample(KEY, 2000)
    assert model.holds(*wide.T).all()
    fixed = Tissue({"S0": (0.8, 1.2), "D": 2.0, "K": 1.5})
    tissue = Population(fixed, model.parameters, model).sample(KEY, 20)
    assert np.all(tissue[:, 1:] == [2.0, 1.5])


@pytest.mark.parametrize("points", [10, {"A": 10, "B": 10, "C": 10}, {}])
def test_grid_divides_the_ranges_ends_included(points):
    grid = Grid.over(PRIORS["uniform"], points)
    assert grid.shape == (10, 10, 1)  # C is fixed by its range
    np.testing.assert_array_equal(grid.axes["B"], np.linspace(10, 150, 10))
    np.testing.assert_array_equal(grid.ranges, PRIORS["uniform"].ranges)


def test_grid_points_are_all_combinations_last_parameter_fastest():
    grid = Grid.over({"S0": (0.8, 1.2), "f": (0.1, 0.5), "D": (1, 3)}, {"f": 2, "D": 3}, {"S0": 1})
    assert grid.shape == (1, 2, 3)
    expected = [[1, f, d] for f in (0.1, 0.5) for d in (1, 2, 3)]
    np.testing.assert_allclose(grid.points, expected)


def test_grid_draws_every_point_equally_often():
    grid = Grid({"A": [1.0, 2.0], "B": [10, 20, 30]})
    points, counts = np.unique(grid.sample(KEY, 6000), axis=0, return_counts=True)
    np.testing.assert_array_equal(points, grid.points)
    assert stats.chisquare(counts).pvalue > 0.01


def test_empirical_draws_are_rows_and_keep_the_correlations():
    prior = PRIORS["empirical"]
    draws = prior.sample(KEY, 20_000)
    rows = {row.tobytes() for row in CORRELATED.astype(np.float32)}
    assert all(draw.tobytes() in rows for draw in draws[:200])
    source = np.corrcoef(CORRELATED.T)
    assert source[0, 1] > 0.7
    np.testing.assert_allclose(np.corrcoef(draws.T), source, atol=5 / np.sqrt(20_000))


def test_empirical_leaves_out_rows_that_are_not_finite():
    params = np.array([[1.0, 2.0], [np.nan, 3.0], [4.0, np.inf], [5.0, 6.0]])
    prior = Empirical(params, ("A", "B"))
    np.testing.assert_array_equal(prior.params, [[1, 2], [5, 6]])
    np.testing.assert_array_equal(prior.ranges, [[1, 5], [2, 6]])


def test_empirical_is_known_by_its_content():
    changed = CORRELATED.copy()
    changed[7, 1] += 1e-3
    names = ("A", "B", "C")
    assert Empirical(CORRELATED.copy(), names).describe() == PRIORS["empirical"].describe()
    assert Empirical(changed, names).describe() != PRIORS["empirical"].describe()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Uniform({}), "got none"),
        (lambda: Uniform({"A": (2, 1)}), r"A is \(2, 1\)"),
        (lambda: Uniform({"A": (0, np.inf)}), "finite lowest value"),
        (lambda: Uniform({"A": (np.nan, 1)}), "finite lowest value"),
        (lambda: Uniform({"A": (0, 1)}, ["A"]), "A starts at 0, but its logarithm"),
        (lambda: Uniform({"A": (1, 2)}, ["B"]), "logarithmic: no parameter 'B'; there are A"),
        (
            lambda: Uniform.typical(Kurtosis([0, 9]), D=(3, 4), K=(1, 3)),
            "Kurtosis holds for hardly",
        ),
        (lambda: Uniform.typical(ADC([0, 1]), D=(0, 1)), "no parameter 'D'; there are S0, ADC"),
        (lambda: Grid({}), "got none"),
        (lambda: Grid({"A": []}), "A needs finite values in ascending order"),
        (lambda: Grid({"A": [2, 1]}), "A needs finite values in ascending order"),
        (lambda: Grid({"A": [1, 1]}), "A needs finite values in ascending order"),
        (lambda: Grid({"A": [1, np.inf]}), "A needs finite values in ascending order"),
        (lambda: Grid.over({"A": (0, 1)}, points=1), r'fixed=\{"A": value\}'),
        (lambda: Grid.over({"A": (0, 1)}, points={"B": 3}), "points: no parameter 'B'"),
        (lambda: Grid.over({"A": (0, 1)}, fixed={"B": 3}), "fixed: no parameter 'B'"),
        (lambda: Empirical(np.ones((4, 2)), ("A",)), r"expected \(K, 1\)"),
        (lambda: Empirical(np.full((4, 1), np.nan), ("A",)), "no row has finite values"),
        (lambda: Empirical(np.ones((0, 1)), ("A",)), "no row has finite values"),
    ],
)
def test_wrong_priors_are_refused_with_a_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
