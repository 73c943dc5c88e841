"""One style for each method, in the colours of the paper."""

import pytest
import xarray as xr

from labelwise.evaluation.methods import Method
from labelwise.plots.styles import style_of, styles

GT = Method("ground truth")
RICIAN, GAUSSIAN = (Method("maximum likelihood", noise=noise) for noise in ("Rician", "Gaussian"))
SELF = Method("self-supervised")
MEAN, TRUTH = (Method("fit", start=start) for start in ("mean", "truth"))
ABSOLUTE = [
    Method("ground truth", loss="absolute"),
    Method("maximum likelihood", noise="Rician", loss="absolute"),
]
HYBRID = Method("mix", alpha=0.5)
PAPER = [MEAN, TRUTH, GT, SELF, RICIAN, GAUSSIAN, HYBRID, *ABSOLUTE]


def blend(alpha):
    return Method("blend", alpha=alpha)


def weighed(parameter):
    return Method("maximum likelihood", noise="Rician", weighed=parameter)


def larger(base, **size):
    return Method(base.kind, noise=base.noise, **size)


ALL = [
    *PAPER,
    *(weighed(name) for name in ("S0", "f", "D_slow", "D_fast", "T2", "ADC", "K")),
    *(blend(alpha) for alpha in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)),
    *(larger(GT, wide=nodes) for nodes in (50, 150)),
    *(larger(GT, deep=layers) for layers in (6, 10)),
    *(larger(RICIAN, wide=150), larger(RICIAN, deep=10)),
    *(Method("posterior mean"), Method()),
]


def channels(method):
    """Red, green, blue."""
    return tuple(bytes.fromhex(style_of(method)["color"][1:]))


def evaluation(*methods):
    names = [f"estimator {index}" for index in range(len(methods))]
    method = "estimator", [each.to_json() for each in methods]
    return xr.Dataset(coords={"estimator": names, "method": method})


@pytest.mark.parametrize("method", [MEAN, TRUTH, Method("fit")])
def test_fits_are_black(method):
    assert channels(method) == (0, 0, 0)


@pytest.mark.parametrize(
    "method",
    [
        *(
            SELF,
            RICIAN,
            GAUSSIAN,
            ABSOLUTE[1],
            blend(1),
            weighed("f"),
            Method("maximum likelihood"),
        ),
        *(larger(RICIAN, wide=150), larger(SELF, deep=10)),
    ],
)
def test_networks_that_imitate_a_fit_are_red(method):
    red, green, blue = channels(method)
    assert red > 1.5 * max(green, blue)


@pytest.mark.parametrize(
    "method", [GT, ABSOLUTE[0], blend(0), larger(GT, wide=150), larger(GT, deep=10)]
)
def test_networks_trained_on_the_truth_are_blue(method):
    red, green, blue = channels(method)
    assert blue > green > red


@pytest.mark.parametrize("method", [HYBRID, blend(0.5)])
def test_what_lies_between_is_purple(method):
    red, green, blue = channels(method)
    assert min(red, blue) > 2 * green


@pytest.mark.parametrize("method", [MEAN, GT, RICIAN])
def test_the_dashes_of_the_paper(method):
    assert style_of(method)["linestyle"] == "-"


def test_no_two_methods_look_the_same():
    assert len({str(style_of(method)) for method in ALL}) == len(ALL)


def test_no_two_of_the_papers_methods_look_the_same_in_black_and_white():
    looks = [(str(style_of(each)["linestyle"]), style_of(each)["marker"]) for each in PAPER]
    assert len(set(looks)) == len(PAPER)


def test_the_wider_the_lighter_and_the_deeper_the_darker():
    light = [sum(channels(larger(GT, wide=nodes))) for nodes in (10, 50, 150, 400)]
    dark = [sum(channels(larger(GT, deep=layers))) for layers in (4, 6, 10, 20)]
    assert light == sorted(light)
    assert dark == sorted(dark, reverse=True)
    assert dark[0] < sum(channels(GT)) < light[0]


@pytest.mark.parametrize("method", [GT, MEAN, Method(), blend(0.5)])
def test_twelve_of_one_method_look_different_and_the_first_as_alone(method):
    found = styles(evaluation(*[method] * 12))
    assert len({str(style) for style in found.values()}) == 12
    assert found["estimator 0"] == style_of(method)


def test_a_style_depends_on_the_method_and_on_no_name():
    found = styles(evaluation(MEAN, GT, blend(0.5)))
    assert list(found.values()) == [style_of(each) for each in (MEAN, GT, blend(0.5))]
