"""The figure of a design shows what its table has."""

from dataclasses import replace

import numpy as np

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


def test_the_areas_of_a_task_have_a_panel():
    prior = lw.Uniform({"S0": (0.8, 1.2), "T2": (20.0, 200.0)})
    task = lw.Detection(lw.Tissue({"T2": 60.0}), lw.Tissue({"T2": (70.0, 90.0)}))
    options = {"estimator": "fit", "voxels": 300, "simulated": False}
    found = lw.design(lw.T2([10, 40, 80]), lw.Rician(), prior, 0.05, 6, task=task, **options)
    _, areas, errors, _ = design_figure(found, "te").axes
    assert areas.get_xlabel() == "AUC of the two tissues"
    assert [label.get_text() for label in areas.get_yticklabels()] == ["$T_2$"]
    drawn = [float(line.get_xdata()[0]) for line in areas.lines]
    assert drawn == [row.auc["T2"].value for row in found.rows]
    assert errors.get_xlabel() == "RMSE / RMSE of Gaussian optimum"


def test_counts_of_near_settings_do_not_touch():
    """Those at b = 45 and 50 s/mm² did."""
    prior = lw.Uniform({"S0": (0.8, 1.2), "ADC": (0.5, 2.0)})
    b = np.array([0, 40, 45, 50, 55, 700, 800]) / 1000
    options = {"estimator": "fit", "voxels": 300, "simulated": False}
    found = lw.design(lw.ADC(b), lw.Rician(), prior, 0.05, 6, **options)
    rows = tuple(
        replace(row, model=lw.ADC(np.repeat(b, [12, 4, 12, 2, 1, 2, 10]))) for row in found.rows
    )
    figure = design_figure(replace(found, rows=rows), "b")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 7 * len(rows)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])
