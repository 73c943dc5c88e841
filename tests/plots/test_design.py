"""The figure of a design shows what its table has."""

import labelwise as lw
from labelwise.plots.design import design_figure


def test_every_acquisition_has_its_volumes_and_errors():
    prior = lw.Uniform({"S0": (0.8, 1.2), "T2": (20.0, 200.0)})
    options = {"estimator": "fit", "voxels": 300, "simulated": False}
    present = lw.T2([10.0, 20.0, 30.0])
    found = lw.design(
        lw.T2([10, 40, 80, 160]), lw.Rician(), prior, 0.05, 9, present=present, **options
    )
    settings, errors, search = design_figure(found, "te").axes
    assert settings.get_xlabel() == "echo times (ms)"
    assert sum(int(text.get_text()) for text in settings.texts) == 9 * len(found.rows)
    assert errors.get_xlabel() == "RMSE / RMSE of present acquisition"
    assert [label.get_text() for label in errors.get_yticklabels()] == ["$S_0$", "$T_2$"]
    assert len(search.lines) == len(found.search)
