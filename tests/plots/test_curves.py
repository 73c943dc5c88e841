from dataclasses import replace

import jax
import numpy as np
import pytest
import xarray as xr

from labelwise import ADC, IVIM, Gaussian, MaximumLikelihood
from labelwise.evaluation.grid import evaluate, marginal
from labelwise.evaluation.methods import Method
from labelwise.plots.curves import performance
from labelwise.priors import Grid

NAMES = ["MLE", "MLE labels", "self-supervised", "GT", "blend 0.5", "Mix 0.5", "posterior mean"]


def evaluation(names=NAMES, values=4):
    """A dataset such as `evaluate` returns for IVIM, of random numbers."""
    rng = np.random.default_rng(0)
    axes = {"S0": [1.0]} | {p.name: np.linspace(1, 2, values) for p in IVIM.parameters[1:]}
    shape = (len(names), 4, *(len(axis) for axis in axes.values()))
    kinds = ("bias", "std", "rmse", "bias_error", "std_error", "rmse_error")
    variables = {kind: (("estimator", "parameter", *axes), rng.random(shape)) for kind in kinds}
    kinds = ("fit", "ground truth", "maximum likelihood", "self-supervised", "posterior mean", "")
    method = [Method(kinds[index % len(kinds)]).to_json() for index in range(len(names))]
    coords = {"estimator": names, "method": ("estimator", method), "parameter": list(axes), **axes}
    return xr.Dataset(variables, coords)


def curves(dataset, parameters=IVIM.parameters[1:], title=""):
    """The figure of all estimators."""
    return performance(dataset, dataset.estimator.values.tolist(), parameters, title)[0, 0].figure


def margins(figure):
    """Inches between what is drawn and the figure's edges: left, bottom, right, top."""
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1


def test_three_rows_and_a_column_for_each_parameter_that_varies():
    figure = curves(evaluation(), title="title")
    assert len(figure.axes) == 9
    labels = [axes.get_xlabel() for axes in figure.axes[-3:]]
    assert labels == ["true $f$", "true $D_{slow}$ (µm²/ms)", "true $D_{fast}$ (µm²/ms)"]
    rows = [axes.get_ylabel() for axes in figure.axes[::3]]
    assert [row.split(" (")[0] for row in rows] == ["bias", "standard deviation", "RMSE"]


def test_lines_are_the_marginal_means_and_bands_two_standard_errors():
    dataset = evaluation()
    axes = curves(dataset).axes[1]  # bias of D_slow
    expected = marginal(dataset, "D_slow").sel(parameter="D_slow")
    lines = {line.get_label(): line for line in axes.lines}
    band = axes.collections[0].get_paths()[0].vertices
    for name in NAMES:
        assert lines[name].get_xdata() == pytest.approx(dataset.D_slow.values)
        assert lines[name].get_ydata() == pytest.approx(expected.bias.sel(estimator=name).values)
    first = expected.sel(estimator="MLE")
    assert band[:, 1].max() == pytest.approx(float((first.bias + 2 * first.bias_error).max()))


def test_only_the_bias_row_has_a_zero_line():
    figure = curves(evaluation(["MLE"]))
    assert [len(axes.lines) for axes in figure.axes] == [2] * 3 + [1] * 6


@pytest.mark.parametrize("count", [1, 2, 7, 12])
@pytest.mark.parametrize("title", ["", "one line", "two\nlines"])
def test_any_number_of_estimators_fits_on_the_page(count, title):
    names = [f"MLE labels, Rician, variant number {n}" for n in range(count)]
    for parameters in (IVIM.parameters[1:], IVIM.parameters[1:2]):
        figure = curves(evaluation(names), parameters, title)
        assert min(margins(figure)) >= 0
        assert len(figure.legends[0].get_texts()) == count


def test_a_title_longer_than_the_figure_is_broken():
    figure = curves(evaluation(["MLE"]), IVIM.parameters[1:2], "a long title " * 10)
    assert figure.get_suptitle().count("\n") == 2
    assert min(margins(figure)) >= 0


def test_lines_have_the_styles_of_their_methods():
    lines = curves(evaluation(["a", "b"])).axes[3].lines
    assert [line.get_color() for line in lines] == ["#000000", "#0072b2"]


def test_points_without_estimates_leave_gaps():
    dataset = evaluation(["MLE"])
    dataset["bias"][:, :, :, 0] = np.nan
    figure = curves(dataset)
    assert np.isnan(figure.axes[0].lines[1].get_ydata()[0])
    assert min(margins(figure)) >= 0


def test_a_symbol_that_cannot_be_typeset_falls_back_to_the_name():
    f, *others = IVIM.parameters[1:]
    figure = curves(evaluation(["MLE"]), [replace(f, symbol="f_a_b"), *others])
    assert figure.axes[0].get_title() == "f"
    figure.draw_without_rendering()


def test_draws_a_real_evaluation():
    model, noise = ADC([0.0, 0.5, 1.0]), Gaussian()
    grid = Grid({"S0": [1.0], "ADC": [0.5, 1.0, 2.0]})
    fits = {"MLE": MaximumLikelihood(model, noise)}
    result = evaluate(fits, model, noise, 0.05, grid, 20, jax.random.key(0))
    assert len(curves(result, model.parameters[1:]).axes) == 3


def test_names_of_files_are_no_mathtext_and_all_in_the_legend():
    names = ["$\\frac{$_$", "_hidden", "GT"]
    figure = curves(evaluation(names), title="$\\frac{$")
    figure.draw_without_rendering()
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == [r"\$\frac{\$_\$", " _hidden", "GT"]
