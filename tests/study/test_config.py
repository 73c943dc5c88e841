"""A study as data: read, written, refused."""

import tomllib
from dataclasses import fields

import numpy as np
import pytest

from labelwise.networks.recipe import Recipe
from labelwise.study.config import Study, paper, read_study, to_toml
from labelwise.types import InputError

T2 = """
model = "t2"
snr = 50
[acquisition]
te = [10, 20, 40, 80]
"""


def written(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_paper_has_the_papers_numbers():
    study = paper()
    assert study.snrs == (15, 30)
    assert (study.model.b * 1000).tolist() == [0, 10, 20, 30, 50, 80, 100, 200, 400, 800]
    assert study.prior.describe()["ranges"] == {
        "S0": [0.8, 1.2],
        "f": [0.1, 0.5],
        "D_slow": [0.4, 3.0],
        "D_fast": [10.0, 150.0],
    }
    assert study.grid.shape == (10, 10, 10, 10)
    assert study.repeats == 500
    assert study.recipe == Recipe.paper()
    assert study.on_bound == "drop"
    assert not study.normalise


@pytest.mark.parametrize(
    "changes",
    [
        {"title": 'two\nlines and a "quote"'},
        {"recipe": Recipe.fast()},
        {"fixed": {"S0": 1.0}, "seed": 7},
        {"levels": (0.02, 0.2)},
        {"wide": 150},
    ],
)
def test_what_is_written_is_read(tmp_path, changes):
    study = paper(**changes)
    again = read_study(written(tmp_path, to_toml(study)))
    assert again.describe() == study.describe()


def test_a_whole_number_stays_one(tmp_path):
    text = to_toml(read_study(written(tmp_path, T2 + "[networks]\nhybrid = 1\n")))
    assert "hybrid = 1\n" in text


def test_the_former_name_of_blend_is_read(tmp_path):
    text = f"{T2}[networks]\nblend = [0.1, 0.9]\n"
    present = read_study(written(tmp_path, text))
    with pytest.warns(UserWarning, match=r"networks\.dial: is called 'blend' now.*version 0\.3"):
        former = read_study(written(tmp_path, text.replace("blend", "dial")))
    assert to_toml(former) == to_toml(present)
    assert "dial" not in to_toml(former)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hybrid": 2.0}, "hybrid must be at most 1, got 2"),
        ({"trainings": 0}, "trainings must be at least 1, got 0"),
        ({"labels": ()}, "labels must be a list of some of"),
        ({"noise_floor": "T1"}, "noise_floor: no parameter 'T1'"),
    ],
)
def test_a_study_made_in_python_is_checked_likewise(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        paper(**changes)


def test_the_file_has_every_number_of_a_recipe():
    known = tomllib.loads(to_toml(paper(recipe=Recipe.paper(width=20))))["training"]
    numbers = {entry.name for entry in fields(Recipe)} - {"name", "loss"}
    assert set(known) == numbers | {"recipe", "trainings"}


def test_a_few_lines_are_enough(tmp_path):
    study = read_study(written(tmp_path, T2))
    assert study.names == ("S0", "T2")
    assert study.free == ("T2",)
    assert np.allclose(study.model.te, [10, 20, 40, 80])
    assert study.recipe == Recipe.paper()


def test_settings_may_be_in_a_file(tmp_path):
    (tmp_path / "dwi.bval").write_text("0 500 1000")
    text = 'model = "adc"\nsnr = 20\n[acquisition]\nb = "dwi.bval"\n'
    study = read_study(written(tmp_path, text))
    assert np.allclose(study.model.b, [0, 0.5, 1])


def test_a_black_box_is_not_taught_by_its_signal(tmp_path):
    (tmp_path / "box.py").write_text(
        "import labelwise as lw, numpy as np\n"
        "class Box(lw.SignalModel):\n"
        "    te: object = lw.per_measurement()\n"
        "    differentiable = False\n"
        "    parameters = (lw.Parameter('S0', 'a.u.', (0, 1e4)),"
        " lw.Parameter('T2', 'ms', (1, 500)))\n"
        "    def signal(self, s0, t2):\n"
        "        return s0 * np.exp(-np.asarray(self.te) / t2)\n"
    )
    with pytest.warns(UserWarning, match=rf"my\.toml: runs the code of {tmp_path}/box\.py$"):
        study = read_study(written(tmp_path, T2.replace('"t2"', '"box.py:Box"')))
    assert "selfsup" not in study.labels
    assert study.model_name == f"{tmp_path / 'box.py'}:Box"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model = ", "not valid TOML"),
        ("model = " + "[" * 100_000, "not valid TOML \\(nested too deeply"),
        ('snr = 5\n[acquisition]\nb = [0]\nmodel = "x"', "model is missing"),
        (
            T2.replace("snr = 50", "snr = -1"),
            "snr must be a positive number or a list of positive numbers, got -1",
        ),
        (T2.replace("te =", "b ="), "needs te, got b"),
        (T2 + "[grid]\npointz = 3", "\\[grid\\]: there is no 'pointz'; known are points"),
        (
            T2 + "[training]\nrecipe = 'slow'",
            "\\[training\\]: recipe must be 'paper', 'fast' or 'every-level', got 'slow'",
        ),
        (
            T2 + "[networks]\nlabels = ['magic']",
            "labels must be a list of some of gt, selfsup, mle-rician, mle-gaussian",
        ),
        (T2 + "[networks]\nhybrid = 1.5", "hybrid must be at most 1, got 1.5"),
        (T2 + "[networks]\nblend = [0.5, -1]", "blend must be a list of shares from 0 to 1"),
        (T2 + "[claims]\nnoise_floor = 'T1'", "no parameter 'T1'"),
        (T2 + "[prior]\nT2 = 5", "T2 must be \\[lowest, highest\\]"),
        (T2 + "[training]\nsignals = 10", "do not fill one batch"),
        (T2 + "[training]\nschedule = 'none'", "schedule must be 'constant' or 'cosine'"),
        (T2 + "[networks]\nwide = -1", "wide must be at least 0, got -1"),
        (T2 + "[networks]\nown_weight = nan", "own_weight must be a finite number, got nan"),
        (T2 + "[networks]\ndial = [0.5]\nblend = [0.5]", "there is no 'dial'"),
        (T2.replace("snr = 50", "snr = []"), "snr must be a positive number or a list"),
        (T2.replace("snr = 50", "snr = inf"), "snr must be a positive number or a list"),
        (T2 + "[grid]\npoints = 1", "at least 2"),
        (T2 + "[networks]\nnormalise = 'no'", "normalise must be true or false, got 'no'"),
        (T2 + "[training]\ntrainings = 1.5", "trainings must be a whole number"),
        (T2 + "[networks]\nlabels = [1]", "labels must be a list of some of .*, got \\[1\\]"),
        (T2 + "[networks]\non_bound = 'lose'", "on_bound must be 'drop' or 'keep', got 'lose'"),
        (T2 + "[grid]\nfixed = { S0 = 1.0, T2 = 50.0 }", "at least one parameter"),
        (T2.replace("snr = 50", "snr = [20, 20.0]"), "given twice"),
        (T2.replace("snr = 50", "snr = '50'"), "snr must be a positive number"),
        (
            T2.replace("snr = 50", "snr = true"),
            "snr must be a positive number or a list of .*, got True",
        ),
        (T2.replace("snr = 50", "snrs = 50"), "there is no 'snrs'"),
        (T2.replace("te = [10, 20", "te = ['10', 20"), "te must be a list of numbers or the name"),
        (T2 + "[grid]\npoints = 2.5", "points must be a whole number"),
        (T2 + "[networks]\nhybrid = '1'", "hybrid must be a number, got '1'"),
        (T2.replace("snr = 50", "snr = 50\ngrid = 3"), "grid must be a table, \\[grid\\], got 3"),
        (
            T2.replace("snr = 50", "snr = 50\nseed = 99999999999999"),
            "seed must be below 2147483648, got 99999999999999",
        ),
        (T2.replace("snr = 50", "snr = 50\nlevels = [0.2, 0.1]"), "levels: expected"),
        (T2.replace("te = [10,", "te = [-10,"), "expected values >= 0 ms"),
        (
            T2.replace("[acquisition]", 'noise = "pink"\n[acquisition]'),
            "noise 'pink': expected rician, gaussian",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_study(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such study file"):
        read_study(tmp_path / "none.toml")


def test_a_quick_study_is_a_smaller_one():
    quick = paper().quick()
    assert isinstance(quick, Study)
    assert quick.recipe.signals < paper().recipe.signals
    assert quick.repeats < paper().repeats
    assert quick.snrs == paper().snrs
