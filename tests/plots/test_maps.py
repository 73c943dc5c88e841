import io

import numpy as np
import pytest

from labelwise.formatting import printable
from labelwise.models import IVIM
from labelwise.plots.maps import parameter_maps
from labelwise.types import Parameter, Status

SHAPE = (20, 12, 3)


def parameters(count):
    more = tuple(Parameter(f"extra_{n}", "ms", (0, 1)) for n in range(3))
    return (*IVIM.parameters, *more)[:count]


def draw(count=4, shape=SHAPE, status=None, **options):
    rng = np.random.default_rng(0)
    status = np.full(shape, Status.CONVERGED) if status is None else status
    maps = {p.name: rng.uniform(0.1, 1, shape) for p in parameters(count)}
    return pictured(maps, parameters(count), status, slices=[1], **options)


def pictured(maps, parameters, status, slices=(0,), **options):
    """Each map is its own standard error, and the first one the residual."""
    options = {"uncertainty": maps, "residual": next(iter(maps.values())), **options}
    return parameter_maps(maps, parameters, status, slices=slices, **options)


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def margins(figure):
    """Inches between what is drawn and the figure's edges: left, bottom, right, top."""
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("shape", [(20, 12, 3), (12, 20, 3), (64, 8, 3)])
def test_any_number_of_parameters_and_any_shape_of_image_fit_on_the_page(count, shape):
    status = np.resize(np.array(Status), shape)
    figure = draw(count, shape, status)
    assert len(titles(figure)) == 2 * count + 2
    assert min(margins(figure)) > 0


def test_titles_carry_symbol_and_unit():
    assert titles(draw())[:6:2] == ["$S_0$ (a.u.)", "$f$", "$D_{slow}$ (µm²/ms)"]


def test_a_symbol_that_cannot_be_typeset_falls_back_to_the_name():
    broken = Parameter("T2", "ms", (0, 1), r"T_{2")
    maps = {"T2": np.ones(SHAPE)}
    status = np.ones(SHAPE, int)
    figure = pictured(maps, [broken], status)
    assert titles(figure)[0] == "T2 (ms)"
    figure.draw_without_rendering()


def test_x_points_right_and_y_up_in_true_proportions():
    status = np.ones((20, 10, 3), int)
    image = draw(1, (20, 10, 3), status, zooms=(1.0, 4.0)).axes[0]
    assert image.images[0].get_array().shape == (10, 20)
    assert image.images[0].origin == "lower"
    box = image.get_window_extent()
    assert box.height / box.width == pytest.approx(2.0)


def test_the_picture_is_cropped_to_the_mask_with_a_margin():
    status = np.zeros(SHAPE, int)
    status[5:10, 4:6, 1] = Status.CONVERGED
    assert draw(1, status=status).axes[0].images[0].get_array().shape == (6, 9)


def test_voxels_on_a_bound_do_not_stretch_the_colours():
    status = np.full(SHAPE, Status.CONVERGED)
    values = np.linspace(1.0, 2.0, status.size).reshape(SHAPE)
    status[:5], values[:5] = Status.ON_BOUND, 300.0
    maps = {"D": values}
    parameter = Parameter("D", "µm²/ms", (0, 300))
    figure = pictured(maps, [parameter], status)
    assert figure.axes[0].images[0].get_clim()[1] <= 2.0


@pytest.mark.parametrize("value", [np.nan, 0.5], ids=["nothing fitted", "constant"])
def test_maps_without_contrast_are_drawn(value):
    maps = {"D": np.full(SHAPE, value)}
    parameter = Parameter("D", "µm²/ms", (0, 1))
    status = np.zeros(SHAPE, int)
    figure = pictured(maps, [parameter], status)
    figure.draw_without_rendering()
    low, high = figure.axes[0].images[0].get_clim()
    assert low < high


def test_the_legend_names_each_status_that_occurs():
    status = np.full(SHAPE, Status.CONVERGED)
    status[0, 0, 1] = Status.NEGATIVE
    legends = [axes.get_legend() for axes in draw(2, status=status).axes if axes.get_legend()]
    assert [text.get_text() for text in legends[0].get_texts()] == [
        Status.CONVERGED.reason,
        Status.NEGATIVE.reason,
    ]


@pytest.mark.parametrize("name", ["a$b$", "$\\frac{$", "a$b", "\\$x\\$", "x\x1b\udcff$y$"])
def test_a_file_name_in_a_title_is_no_mathtext(name):
    ones = np.ones((4, 4, 1))
    parameter = Parameter("D", "m$^2$", (0.0, 4.0))
    figure = pictured(
        {"D": ones},
        [parameter],
        ones.astype(int),
        title=f"{name}, slice 1",
    )
    figure.savefig(io.BytesIO())
    shown, is_math = figure._suptitle._preprocess_math(figure._suptitle.get_text())
    assert not is_math
    assert shown == f"{printable(name)}, slice 1"
    assert r"(m\$^2\$)" in figure.axes[0].get_title("left")


def letters(axes):
    return {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}


def test_marks_say_what_the_sides_point_to():
    """The first array axis points right and the second up."""
    left, right, bottom, top = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.01), (0.5, 0.99))
    assert letters(draw(2, orientation="LA").axes[0]) == {
        "L": right, "R": left, "A": top, "P": bottom,
    }  # fmt: skip
    assert letters(draw(2, orientation="SI").axes[0])["I"] in (left, top)
    assert letters(draw(2).axes[0]) == {}


def test_several_slices_are_one_beneath_the_other_and_numbered():
    values = np.broadcast_to(np.arange(3.0), SHAPE)
    parameter = Parameter("D", "µm²/ms", (0, 3))
    figure = pictured({"D": values}, [parameter], np.ones(SHAPE, int), [2, 0], orientation="RA")
    first, second = figure.axes[:2]
    assert [axes.images[0].get_array().mean() for axes in (first, second)] == [2, 0]
    assert first.get_position().y0 > second.get_position().y1
    assert "3" in letters(first)
    assert "1" in letters(second)
    assert titles(figure) == ["$D$ (µm²/ms)", "standard error (µm²/ms)", "residual", "status"]
    assert min(margins(figure)) > 0


def test_no_value_has_another_grey_than_outside_the_mask():
    status = np.full(SHAPE, Status.CONVERGED)
    status[0], status[5, 5] = Status.NOT_FITTED, Status.NOT_CONVERGED
    values = np.where(status == Status.CONVERGED, 0.5, np.nan)
    figure = pictured({"D": values}, [Parameter("D", "ms", (0, 1))], status, [1])
    figure.draw_without_rendering()
    map_, over = (image.to_rgba(image.get_array()) for image in figure.axes[0].images)
    seen = np.where(over[..., 3:] > 0, over, map_)
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    pairs = zip(legend.get_texts(), legend.get_patches(), strict=True)
    colours = {text.get_text(): patch.get_facecolor() for text, patch in pairs}
    assert colours["outside the mask"] != colours["no value"]
    np.testing.assert_allclose(seen[0, 0], colours["outside the mask"])
    np.testing.assert_allclose(seen[5, 5], colours["no value"])


def test_the_residual_is_shown():
    residual = np.linspace(0, 7, np.prod(SHAPE)).reshape(SHAPE)
    figure = draw(2, residual=residual)
    (axes,) = [axes for axes in figure.axes if axes.get_title("left") == "residual"]
    np.testing.assert_array_equal(axes.images[0].get_array(), residual[:, :, 1].T)
    assert axes.images[0].get_clim()[1] > 6
