import io
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PathCollection
from matplotlib.image import imread
from matplotlib.quiver import Quiver
from matplotlib.text import Text

from labelwise.evaluation.grid import marginal
from labelwise.evaluation.methods import Method
from labelwise.models import IVIM
from labelwise.plots.curves import performance
from labelwise.plots.styles import style_of
from labelwise.study import methods
from labelwise.study.methods import blend, own_weight
from labelwise.study.plots.curves import binned, blend_curves, coverage_curves
from labelwise.study.plots.space import arrows, densities, fixed_points, maps

S0, F, SLOW, FAST = IVIM.parameters
SHOWN = (F, SLOW, FAST)
KINDS = ("bias", "std", "rmse")
ALPHAS = (0.0, 0.5, 1.0)
METHODS = [
    *(Method("fit", start="mean"), Method("ground truth"), Method("self-supervised")),
    *(Method("maximum likelihood", noise="Rician"), Method("mix", alpha=0.5)),
    *(Method("maximum likelihood", noise="Rician", weighed=p.name) for p in SHOWN),
    *(Method("blend", alpha=alpha) for alpha in ALPHAS),
]
NAMES = [method.name for method in METHODS]
COORDS = {"estimator": NAMES, "method": ("estimator", [method.to_json() for method in METHODS])}


def evaluation(parameters=IVIM.parameters, values=4, free=None):
    """A dataset such as `evaluate` returns, of random numbers."""
    rng = np.random.default_rng(0)
    free = parameters if free is None else free
    axes = {p.name: np.linspace(1, 2, values if p in free else 1) for p in parameters}
    shape = (len(NAMES), len(parameters), *map(len, axes.values()))
    variables = {
        name: (("estimator", "parameter", *axes), rng.random(shape) - (name == "bias") * 0.5)
        for name in (*KINDS, *(f"{kind}_error" for kind in KINDS))
    }
    return xr.Dataset(variables, {**COORDS, "parameter": list(axes), **axes})


def in_bins(bins=6):
    rng = np.random.default_rng(1)
    shape = (len(NAMES), len(SHOWN), bins)
    count = np.array([[0, 9, 10, 500, 40, 3]] * len(SHOWN))[:, :bins]
    variables: dict[str, Any] = {
        name: (("estimator", "parameter", "bin"), np.where(count, rng.random(shape), np.nan))
        for name in (*KINDS, *(f"{kind}_error" for kind in KINDS))
    }
    variables["centre"] = (("parameter", "bin"), np.tile(np.arange(bins) + 0.5, (len(SHOWN), 1)))
    variables["width"] = ("parameter", np.ones(len(SHOWN)))
    variables["count"] = (("parameter", "bin"), count)
    return xr.Dataset(variables, {**COORDS, "parameter": [p.name for p in SHOWN]})


def with_intervals():
    ds = evaluation().sel(estimator=[methods.GT, methods.MLE_RICIAN])
    shares = np.random.default_rng(3).uniform(0.5, 1, ds.bias.shape)
    columns = {"coverage": shares, "interval_score": 3 * shares}
    columns |= {f"{name}_error": 0 * shares + 0.01 for name in columns}
    return ds.assign({name: (ds.bias.dims, values) for name, values in columns.items()})


def images(methods=("Gold standard", methods.GT)):
    values = np.random.default_rng(2).random((len(methods), len(SHOWN), 20, 15))
    values[..., :4, :], values[..., 12:] = np.nan, np.nan
    coords = {"method": list(methods), "parameter": [p.name for p in SHOWN]}
    return xr.Dataset({"value": (("method", "parameter", "x", "y"), values)}, coords)


OWN = {p.name: [methods.MLE_RICIAN, own_weight(p.name)] for p in SHOWN}
BY_ALPHA = {alpha: blend(alpha) for alpha in ALPHAS}
PAIR = methods.GT, methods.MLE_RICIAN
LINES = [methods.MLE_MEAN, *PAIR]
EVERY_FIGURE = {
    "performance": lambda: performance(evaluation(), LINES, SHOWN, "title"),
    "own_weights": lambda: performance(evaluation(), OWN, SHOWN, "title"),
    "binned": lambda: binned(in_bins(), LINES, SHOWN, "title"),
    "blend": lambda: blend_curves(evaluation(), BY_ALPHA, SHOWN, "t", {0.5: methods.HYBRID}),
    "coverage": lambda: coverage_curves(with_intervals(), SHOWN, "title"),
    "arrows": lambda: arrows(evaluation(), PAIR, [(F, SLOW), (F, FAST), (SLOW, FAST)], "title"),
    "densities": lambda: densities(evaluation(), *PAIR, SHOWN, "title"),
    "fixed_points": lambda: fixed_points(evaluation(), *PAIR, SLOW, F, FAST, "title"),
    "maps": lambda: maps(images(), SHOWN, "title"),
}


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines}


def words(grid):
    return [axes.get_ylabel() for axes in grid[:, 0]]


@pytest.mark.parametrize("figure", EVERY_FIGURE.values(), ids=EVERY_FIGURE)
def test_every_figure_is_written_whole_and_legible_as_png_and_pdf(figure):
    page = figure().flat[0].figure
    png, pdf = io.BytesIO(), io.BytesIO()
    page.savefig(png, format="png", dpi=150)
    page.savefig(pdf, format="pdf")
    assert pdf.getvalue().startswith(b"%PDF")
    png.seek(0)
    pixels = imread(png)[..., :3]
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert np.all(edge == 1)
    texts = page.findobj(lambda artist: isinstance(artist, Text) and artist.get_text())
    assert min(text.get_fontsize() for text in texts) >= 7


@pytest.mark.parametrize(("name", "rows"), [("performance", 3), ("own_weights", 3), ("binned", 4)])
def test_a_row_for_each_quantity_and_a_column_for_each_parameter(name, rows):
    grid = EVERY_FIGURE[name]()
    assert grid.shape == (rows, 3)
    assert words(grid) == ["bias", "standard deviation", "RMSE", "voxels"][:rows]
    titles = [axes.get_title() for axes in grid[0]]
    assert titles == ["$f$", "$D_{slow}$ (µm²/ms)", "$D_{fast}$ (µm²/ms)"]
    what = "reference" if name == "binned" else "true"
    assert [axes.get_xlabel() for axes in grid[-1]] == [f"{what} {title}" for title in titles]


def test_lines_are_marginal_means_in_the_styles_of_their_names_and_bands_two_errors():
    ds = evaluation()
    axes = performance(ds, NAMES, SHOWN)[1, 2]
    curve = marginal(ds, "D_fast").sel(parameter="D_fast")
    lines = lines_of(axes)
    assert list(lines) == NAMES
    for name, band in zip(NAMES, axes.collections, strict=True):
        here, style = curve.sel(estimator=name), style_of(METHODS[NAMES.index(name)])
        assert lines[name].get_xdata() == pytest.approx(ds.D_fast.values)
        assert lines[name].get_ydata() == pytest.approx(here["std"].values)
        assert lines[name].get_color() == style["color"]
        assert lines[name].get_marker() == style["marker"]
        top = band.get_paths()[0].vertices[:, 1].max()
        assert top == pytest.approx(float((here["std"] + 2 * here.std_error).max()))


def test_the_legend_names_what_is_drawn_and_covers_no_panel():
    grid = performance(evaluation(), NAMES, SHOWN)
    page = grid.flat[0].figure
    page.draw_without_rendering()
    (legend,) = page.legends
    assert [text.get_text() for text in legend.get_texts()] == NAMES
    assert legend.get_window_extent().y1 <= grid[-1, 0].get_tightbbox().y0


@pytest.mark.parametrize("name", ["performance", "own_weights", "binned", "fixed_points"])
def test_bias_std_and_rmse_are_drawn_to_one_scale(name):
    grid = EVERY_FIGURE[name]()
    for column in grid[:3].T if name != "fixed_points" else [grid[:, 1]]:
        limits = np.array([axes.get_ylim() for axes in column])
        assert np.ptp(limits, axis=1) == pytest.approx(np.ptp(limits[0]))
        assert limits[0].sum() == pytest.approx(0)
        assert limits[1:, 0] == pytest.approx(0)
        assert all(axes.dataLim.y1 <= axes.get_ylim()[1] for axes in column)


def test_each_column_compares_the_reference_with_the_network_of_its_own_parameter():
    grid = EVERY_FIGURE["own_weights"]()
    for column, parameter in zip(grid.T, SHOWN, strict=True):
        for axes in column[1:]:
            assert list(lines_of(axes)) == [methods.MLE_RICIAN, own_weight(parameter.name)]


def test_bins_with_few_voxels_have_no_point_but_a_pale_bar():
    ds = in_bins()
    grid = binned(ds, LINES, SHOWN)
    drawn = lines_of(grid[1, 0])[methods.GT].get_ydata()
    assert np.isfinite(drawn).tolist() == [False, False, True, True, True, False]
    here = ds["std"].sel(estimator=methods.GT, parameter="f").values
    assert drawn[2:5] == pytest.approx(here[2:5])
    bars = [bar for bar in grid[3, 0].patches if bar.get_height()]
    heights = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in bars}
    assert heights == pytest.approx({1.5: 9, 2.5: 10, 3.5: 500, 4.5: 40, 5.5: 3})
    pale = {bar.get_height() for bar in bars if bar.get_facecolor()[0] > 0.7}
    assert pale == {9, 3}


def test_the_dial_shows_means_over_the_grid_by_alpha_and_trained_networks_apart():
    ds = evaluation()
    grid = blend_curves(ds, dict(reversed(BY_ALPHA.items())), SHOWN, trained={0.5: methods.HYBRID})
    assert words(grid) == ["mean |bias|", "standard deviation", "RMSE"]
    over = [p.name for p in IVIM.parameters]
    means = abs(ds.bias).mean(over).sel(parameter="D_slow")
    dialled, trained = grid[0, 1].lines
    assert dialled.get_xdata() == pytest.approx(ALPHAS)
    expected = [float(means.sel(estimator=BY_ALPHA[alpha])) for alpha in ALPHAS]
    assert dialled.get_ydata() == pytest.approx(expected)
    assert trained.get_ydata() == pytest.approx([float(means.sel(estimator=methods.HYBRID))])
    (points,) = (each for each in grid[0, 1].collections if isinstance(each, PathCollection))
    colours = np.asarray(points.get_facecolor())
    assert colours[0, 2] > colours[0, 0]  # blue
    assert colours[-1, 0] > colours[-1, 2]  # red
    assert len(blend_curves(ds, BY_ALPHA, SHOWN)[0, 0].lines) == 1


def test_coverage_is_in_percent_with_one_scale_and_a_line_at_95():
    ds, grid = with_intervals(), EVERY_FIGURE["coverage"]()
    assert words(grid) == ["coverage (%)", "interval score"]
    assert len({axes.get_ylim() for axes in grid[0]}) == 1
    for axes, row, factor in zip(grid[:, 1], ("coverage", "interval_score"), (100, 1), strict=True):
        lines = lines_of(axes)
        mean = ds[row].sel(estimator=methods.GT, parameter="D_slow").mean(["S0", "f", "D_fast"])
        assert np.allclose(lines[methods.GT].get_ydata(), factor * mean.values)
    for axes in grid[0]:
        assert [95.0, 95.0] in [list(line.get_ydata()) for line in axes.lines]


def test_arrows_lead_from_the_truth_to_the_mean_estimate():
    ds = evaluation()
    grid = arrows(ds, PAIR, [(F, SLOW), (SLOW, FAST)])
    assert grid.shape == (2, 2)
    assert [axes.get_title(loc="left") for axes in grid[:, 0]] == list(PAIR)
    assert grid[1, 1].get_xlabel() == "$D_{slow}$ (µm²/ms)"
    assert [axes.get_ylabel() for axes in grid[0]] == ["$D_{slow}$ (µm²/ms)", "$D_{fast}$ (µm²/ms)"]
    (quiver,) = (each for each in grid[1, 1].collections if isinstance(each, Quiver))
    bias = ds.bias.sel(estimator=PAIR[1]).mean(["S0", "f"]).transpose(..., "D_fast", "D_slow")
    start, along, across = quiver.X, quiver.U, quiver.V
    assert along == pytest.approx(bias.sel(parameter="D_slow").values.ravel())
    assert across == pytest.approx(bias.sel(parameter="D_fast").values.ravel())
    assert start == pytest.approx(np.tile(ds.D_slow.values, 4))
    assert np.asarray(quiver.get_facecolor())[0, 0] > 0.8  # MLE-labelled: red


def test_arrows_have_a_quarter_around_the_space_in_every_row():
    ds = evaluation()
    ds["bias"][:] = 0.1
    ds["bias"].loc[{"estimator": methods.GT, "parameter": "f"}] = 0.7  # leads out of it
    for axes in arrows(ds, PAIR, [(F, SLOW)])[:, 0]:
        assert axes.get_ylim() == pytest.approx((0.75, 2.25))
        assert axes.get_xlim() == pytest.approx((0.75, 2.7))
        (box,) = axes.patches
        assert box.get_bbox().extents == pytest.approx([1, 1, 2, 2])


def test_densities_count_every_grid_point_that_has_both_estimates():
    ds = evaluation()
    ds["std"].loc[{"estimator": methods.GT, "parameter": "f", "S0": 1.0}] = np.nan
    grid = densities(ds, *PAIR, SHOWN)
    counts = [[np.ma.sum(axes.collections[0].get_array()) for axes in row] for row in grid]
    assert counts == [[256] * 3, [192, 256, 256], [256] * 3]
    assert words(grid)[0] == f"bias\n{PAIR[1]}"
    assert grid[2, 1].get_xlabel() == f"{PAIR[0]} (µm²/ms)"
    assert grid.flat[0].figure.axes[-1].get_ylabel() == "grid points"


def test_densities_have_equal_axes_x_for_the_first_method():
    ds = evaluation()
    ds["rmse"].loc[{"estimator": PAIR[0]}] = 3.0
    axes = densities(ds, *PAIR, SHOWN)[2, 0]
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_aspect() == 1
    counts = axes.collections[0].get_array().filled(0)
    (column,) = np.flatnonzero(counts.sum(axis=0))
    assert column == counts.shape[1] - 1


@pytest.mark.parametrize(("column", "index"), [(0, 1), (2, -2)])
def test_planes_are_differences_at_a_fixed_value(column, index):
    ds = evaluation()
    grid = fixed_points(ds, *PAIR, SLOW, F, FAST)
    here = (
        ds.bias.sel(parameter="D_slow").isel(D_slow=index).mean("S0").transpose(..., "D_fast", "f")
    )
    expected = here.sel(estimator=PAIR[0]).values - here.sel(estimator=PAIR[1]).values
    mesh = grid[0, column].collections[0]
    assert mesh.get_array().filled(np.nan) == pytest.approx(expected)
    low, high = mesh.get_clim()
    assert low == -high
    assert high >= np.abs(expected).max()
    value = ds.D_slow.values[index]
    assert grid[0, column].get_title() == f"at $D_{{slow}}$ = {value:.3g} µm²/ms"
    assert (grid[2, column].get_xlabel(), grid[0, column].get_ylabel()) == (
        "$f$",
        "$D_{fast}$ (µm²/ms)",
    )


def test_between_the_planes_are_marginal_curves_with_both_values_marked():
    ds = evaluation()
    axes = fixed_points(ds, *PAIR, SLOW, F, FAST, indices=(0, -1))[1, 1]
    lines = axes.lines
    assert [line.get_label() for line in lines[:2]] == list(PAIR)
    curve = marginal(ds, "D_slow").sel(parameter="D_slow", estimator=methods.GT)
    assert lines[0].get_ydata() == pytest.approx(curve["std"].values)
    assert [line.get_xdata()[0] for line in lines[2:]] == [1.0, 2.0]
    assert axes.get_ylabel() == "standard deviation (µm²/ms)"


def test_maps_share_the_range_of_the_gold_standard_and_are_cropped():
    ds = images()
    ds["value"][1] += 5
    grid = maps(ds, SHOWN)
    assert grid.shape == (3, 2)
    assert [axes.get_title() for axes in grid[0]] == ["Gold standard", "Supervised GT"]
    gold = ds.value[0, 1].values
    for axes in grid[1]:
        (image,) = axes.images
        assert image.get_clim() == pytest.approx(tuple(np.nanpercentile(gold, [2, 98])), abs=1e-4)
        assert image.get_array().shape == (14, 18)  # y, x: two more than have values
        assert axes.get_aspect() == 1
    bars = [axes.get_ylabel() for axes in grid.flat[0].figure.axes[6:]]
    assert bars == ["$f$", "$D_{slow}$ (µm²/ms)", "$D_{fast}$ (µm²/ms)"]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_models_of_one_to_four_parameters(count):
    parameters = IVIM.parameters[:count]
    ds = evaluation(parameters)
    assert performance(ds, LINES, parameters).shape == (3, count)
    assert densities(ds, *PAIR, parameters).shape == (3, count)
    assert blend_curves(ds, BY_ALPHA, parameters).shape == (3, count)
    if count > 1:
        assert arrows(ds, PAIR, [(parameters[-2], parameters[-1])]).shape == (1, 2)
    if count > 2:
        assert fixed_points(ds, *PAIR, parameters[0], parameters[1], parameters[2]).shape == (3, 3)


def test_parameters_with_one_value_are_drawn_as_points():
    ds = evaluation(free=(F, SLOW))
    grid = performance(ds, LINES, IVIM.parameters)
    assert [len(axes.lines[-1].get_xdata()) for axes in grid[1]] == [1, 4, 4, 1]
    arrows(ds, PAIR, [(S0, FAST)]).flat[0].figure.draw_without_rendering()


def test_estimators_that_failed_everywhere_leave_nothing_but_empty_axes():
    ds = evaluation()
    ds = ds.where(ds.estimator != methods.GT)
    one = [methods.GT]
    for grid in (
        performance(ds, one, SHOWN),
        arrows(ds, one, [(F, SLOW)]),
        densities(ds, *PAIR, SHOWN),
        fixed_points(ds, *PAIR, SLOW, F, FAST),
        blend_curves(ds, {0.0: methods.GT}, SHOWN),
    ):
        grid.flat[0].figure.draw_without_rendering()


UNKNOWN = "nobody"
REFUSED = {
    "performance": lambda ds: performance(ds, [UNKNOWN], SHOWN),
    "own_weights": lambda ds: performance(ds, OWN | {"f": [UNKNOWN]}, SHOWN),
    "arrows": lambda ds: arrows(ds, [UNKNOWN], [(F, SLOW)]),
    "densities": lambda ds: densities(ds, UNKNOWN, methods.GT, SHOWN),
    "fixed_points": lambda ds: fixed_points(ds, methods.GT, UNKNOWN, SLOW, F, FAST),
    "blend": lambda ds: blend_curves(ds, {0.5: UNKNOWN}, SHOWN),
    "trained": lambda ds: blend_curves(ds, BY_ALPHA, SHOWN, trained={0.5: UNKNOWN}),
    "binned": lambda ds: binned(in_bins(), [UNKNOWN], SHOWN),
}


@pytest.mark.parametrize("figure", REFUSED.values(), ids=REFUSED)
def test_an_unknown_estimator_is_refused(figure):
    with pytest.raises(ValueError, match=r"names: expected .* MLE, from the mean.*got 'nobody'"):
        figure(evaluation())


LESS = IVIM.parameters[:2]
LACKING = {
    "performance": lambda ds: performance(ds, LINES, [SLOW]),
    "own_weights": lambda ds: performance(ds, OWN, [SLOW]),
    "arrows": lambda ds: arrows(ds, PAIR, [(F, SLOW)]),
    "densities": lambda ds: densities(ds, *PAIR, [SLOW]),
    "fixed_points": lambda ds: fixed_points(ds, *PAIR, F, S0, SLOW),
    "blend": lambda ds: blend_curves(ds, BY_ALPHA, [SLOW]),
}


@pytest.mark.parametrize("figure", LACKING.values(), ids=LACKING)
def test_an_unknown_parameter_is_refused(figure):
    with pytest.raises(ValueError, match=r"parameters: expected .* S0, f; got 'D_slow'"):
        figure(evaluation(LESS))


def test_maps_without_a_parameter_are_refused():
    with pytest.raises(ValueError, match=r"parameters: .*got 'S0'"):
        maps(images(), [S0])


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        (lambda ds: performance(ds, [], SHOWN), "names: .*; got none"),
        (lambda ds: performance(ds, LINES, []), "parameters: .*; got none"),
        (lambda ds: arrows(ds, PAIR, []), "parameters: .*; got none"),
    ],
)
def test_what_cannot_be_drawn_is_refused(figure, sentence):
    with pytest.raises(ValueError, match=sentence):
        figure(evaluation())
