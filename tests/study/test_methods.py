import pytest

from labelwise.study import methods
from labelwise.study.methods import blend, deep, own_weight, style_of, wide

ALL = [
    *(methods.MLE_MEAN, methods.MLE_TRUTH, methods.GT, methods.SELF, methods.MLE_RICIAN),
    *(methods.MLE_GAUSSIAN, methods.HYBRID, methods.GT_ABSOLUTE, methods.MLE_ABSOLUTE),
    *(own_weight(name) for name in ("S0", "f", "D_slow", "D_fast", "T2", "ADC", "K")),
    *(blend(alpha) for alpha in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)),
    *(wide(methods.GT, nodes) for nodes in (50, 150)),
    *(deep(methods.GT, layers) for layers in (6, 10)),
    *(wide(methods.MLE_RICIAN, 150), deep(methods.MLE_RICIAN, 10)),
    *("DIPY", "another fit"),
]


def channels(name):
    """Red, green, blue."""
    return tuple(bytes.fromhex(style_of(name)["color"][1:]))


@pytest.mark.parametrize("name", [methods.MLE_MEAN, methods.MLE_TRUTH])
def test_fits_are_black(name):
    assert channels(name) == (0, 0, 0)


@pytest.mark.parametrize(
    "name",
    [
        *(methods.SELF, methods.MLE_RICIAN, methods.MLE_GAUSSIAN, methods.MLE_ABSOLUTE, blend(1)),
        *(
            own_weight("f"),
            own_weight("Blend 0.3"),
            wide(methods.MLE_RICIAN, 150),
            deep(methods.SELF, 10),
        ),
    ],
)
def test_networks_that_imitate_a_fit_are_red(name):
    red, green, blue = channels(name)
    assert red > 1.5 * max(green, blue)


@pytest.mark.parametrize(
    "name", [methods.GT, methods.GT_ABSOLUTE, blend(0), wide(methods.GT, 150), deep(methods.GT, 10)]
)
def test_networks_taught_the_truth_are_blue(name):
    red, green, blue = channels(name)
    assert blue > green > red


@pytest.mark.parametrize("name", [methods.HYBRID, blend(0.5)])
def test_what_lies_between_is_purple(name):
    red, green, blue = channels(name)
    assert min(red, blue) > 2 * green


@pytest.mark.parametrize(
    ("name", "dashes"), [(methods.MLE_MEAN, "-"), (methods.GT, "-"), (methods.MLE_RICIAN, "-")]
)
def test_the_dashes_of_the_paper(name, dashes):
    assert style_of(name)["linestyle"] == dashes


def test_no_two_estimators_look_the_same():
    looks = [tuple(map(str, style_of(name).values())) for name in ALL]
    assert len(set(looks)) == len(ALL)


def test_no_two_of_the_papers_estimators_look_the_same_in_black_and_white():
    looks = [(str(style_of(n)["linestyle"]), style_of(n)["marker"]) for n in ALL[:9]]
    assert len(set(looks)) == 9


def test_the_same_name_always_looks_the_same():
    assert style_of(own_weight("f")) == style_of(own_weight("f")) != style_of(own_weight("T2"))


def test_the_wider_the_lighter_and_the_deeper_the_darker():
    light = [sum(channels(wide(methods.GT, nodes))) for nodes in (10, 50, 150, 400)]
    dark = [sum(channels(deep(methods.GT, layers))) for layers in (4, 6, 10, 20)]
    assert light == sorted(light)
    assert dark == sorted(dark, reverse=True)
    assert dark[0] < sum(channels(methods.GT)) < light[0]


@pytest.mark.parametrize(
    "name",
    [
        "Dial",
        "Blend up",
        "Blend nan",
        "Blend inf",
        "",
        ", 10 deep",
        "x, deep",
        "GT, -3 wide",
        "GT, inf deep",
        "GT, 3 wide",
    ],
)
def test_any_text_has_a_style(name):
    assert set(style_of(name)) == {"color", "linestyle", "marker"}
