"""Pictures of tunings: the curve, its errors, what was chosen; nothing falls off the page."""

import numpy as np
import pytest

from labelwise import IVIM
from labelwise.evaluation.tuning import Curve, Detection, Rmse, Tuning
from labelwise.plots.tuning import tune_figure
from labelwise.priors import Tissue

ALPHA = np.arange(11) / 10


def curve(parameter, best=3, differs=True, scale=0.3):
    value = 0.7 - scale * (ALPHA - 0.3) ** 2
    worse, error = value[best] - value, np.full(11, 0.004)
    return Curve(parameter, ALPHA, best, value, value, error, worse, error, differs)


def tuning(task, *curves):
    return Tuning(task, {each.parameter.name: each for each in curves}, 1 / 15, 1000)


def detection(*curves):
    return tuning(Detection(Tissue({}, "a"), Tissue({}, "b")), *curves)


def margins(figure):
    """Inches between what is drawn and the figure's edges: left, bottom, right, top."""
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1


def test_a_panel_shows_the_curve_its_errors_the_chosen_and_those_as_good():
    found = curve(IVIM.parameters[1])
    (axes,) = tune_figure(detection(found)).axes
    line, chosen = axes.lines[:2]
    assert line.get_ydata() == pytest.approx(found.value)
    assert (chosen.get_xdata(), chosen.get_ydata()) == (0.3, found.value[3])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((found.value.min() - 0.008, 0.708))
    (good,) = axes.patches
    assert (good.get_x(), good.get_x() + good.get_width()) == pytest.approx(found.span)


def test_axes_are_named_with_their_units():
    figure = tune_figure(tuning(Rmse(), *map(curve, IVIM.parameters[1:])))
    assert [axes.get_ylabel() for axes in figure.axes] == ["RMSE", *["RMSE (µm²/ms)"] * 2]
    assert {axes.get_xlabel() for axes in figure.axes} == {"alpha (0 least variance, 1 least bias)"}
    assert [axes.get_title() for axes in figure.axes][1] == "$D_{slow}$"


def test_where_nothing_was_chosen_nothing_is_marked():
    (axes,) = tune_figure(detection(curve(IVIM.parameters[0], differs=False))).axes
    assert axes.get_title() == "$S_0$, the same in both"
    assert len(axes.patches) == 0
    assert len(axes.lines) == 2  # the curve, and the area of a coin


def test_a_flat_curve_looks_flat():
    flat = curve(IVIM.parameters[1], scale=1e-6)
    flat.error[:] = 1e-6
    for found, least in ((detection(flat), 0.02), (tuning(Rmse(), flat), 0.05 * 0.7)):
        low, high = tune_figure(found).axes[0].get_ylim()
        assert high - low == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("title", ["", "IVIM, SNR 15, AUC of " + "f=0.1:0.2,D_slow=1:1.2 " * 8])
def test_any_number_of_parameters_fits_on_the_page(count, title):
    names = ("S0", "f", "D_slow", "D_fast", "K", "T2", "T1")[:count]
    curves = {name: curve(IVIM.parameters[2]) for name in names}
    figure = tune_figure(Tuning(Rmse(), curves, 1 / 15, 1000), title)
    assert min(margins(figure)) >= 0
    assert sum(axes.axison for axes in figure.axes) == count
