"""A whole study, small: what it writes, and that it goes on where it stopped."""

import re
import shutil
import sys

import pytest

from helpers import valid
from labelwise.networks.network import load
from labelwise.study import methods, run
from labelwise.study.config import read_study
from labelwise.study.run import run_study
from labelwise.study.stages import opened
from study.conftest import tiny, whole

FIGURES = ("figure_02", "figure_03", "figure_04", "figure_08", "figure_09", "figure_10")
MORE = ("figure_11", "figure_12", "blend", "intervals", "absolute_loss", "variants")


def test_every_figure_is_there_as_png_and_pdf(outcome):
    for name in (*FIGURES, *MORE):
        assert (outcome.folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (outcome.folder / "figures" / f"{name}.pdf").read_bytes()[:4] == b"%PDF"


def test_the_page_has_every_figure_and_claim(outcome):
    page = (outcome.folder / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == len((*FIGURES, *MORE))
    assert all(claim.key in page for claim in outcome.claims)
    assert "All data are simulated" in page
    assert not re.search(r'(src|href)="https?://(?!doi)', page)


def test_the_record_says_what_the_page_says(outcome):
    said = valid("study", (outcome.folder / "claims.json").read_text(encoding="utf-8"))
    assert [c["verdict"] for c in said["claims"]] == [c.verdict.value for c in outcome.claims]
    assert said["command"] == "labelwise study run tiny.toml out"
    rows = next(t for t in said["tables"] if t["key"] == "networks")["rows"]
    assert {row[0] for row in rows} >= {
        methods.GT,
        methods.SELF,
        methods.MLE_RICIAN,
        methods.HYBRID,
    }


def test_the_description_can_be_run_again(outcome):
    study = read_study(outcome.folder / "study.toml")
    assert study.describe() == whole().describe()


def test_networks_are_files_that_other_commands_read(outcome):
    network = load(outcome.folder / "networks" / "snr_15" / "supervised_gt.safetensors")
    assert network.card.label["kind"] == "ground truth"


def test_intervals_are_those_of_the_first_training_at_the_lowest_snr(outcome):
    kinds = {
        (snr, name): set(
            load(
                outcome.folder / "networks" / f"snr_{snr}" / f"supervised_{name}.safetensors"
            ).interval_kinds.values()
        )
        for snr in (15, 30)
        for name in ("gt", "mle_rician", "mle_gaussian")
    }
    known = {(15, "gt"): {"credible"}, (15, "mle_rician"): {"confidence"}}
    assert kinds == {key: set() for key in kinds} | known
    stages = [stage.stage for stage in outcome.stage_times if "intervals" in stage.stage]
    assert stages == ["intervals, SNR 15", "intervals of the prior, SNR 15"]
    assert {"confidence", "credible"} <= {claim.key for claim in outcome.claims}


def test_a_second_run_makes_nothing_again_and_says_the_same(outcome, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(outcome.folder, folder)
    again = run_study(whole(), folder)
    assert all(stage.kept for stage in again.stage_times[:-1])
    assert again.claims == outcome.claims
    for figure in (outcome.folder / "figures").iterdir():
        assert (folder / "figures" / figure.name).read_bytes() == figure.read_bytes(), figure.name


@pytest.mark.parametrize("stage", ["networks, SNR 15", "MLE, from the truth", "evaluation, SNR 30"])
def test_an_interrupted_study_comes_to_the_same(outcome, tmp_path, stage, monkeypatch):
    """Without its later stages, as a kill leaves it."""
    monkeypatch.setattr(run, "figures", lambda *of: iter(()))
    folder = tmp_path / "cut"
    shutil.copytree(outcome.folder, folder)
    stages = [stage.stage for stage in outcome.stage_times[:-1]]
    first = next(i for i, name in enumerate(stages) if name.startswith(stage))
    for name in stages[first:]:
        slug = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
        for place in (folder / "stages").glob(f"{slug}-*"):
            shutil.rmtree(place)
    if stage.startswith("networks"):
        for place in sorted((folder / "stages").glob("lesson-*"))[1:]:
            shutil.rmtree(place)
    again = run_study(whole(), folder)
    assert all(stage.kept for stage in again.stage_times[:first]) or stage.startswith("networks")
    assert not all(stage.kept for stage in again.stage_times[:-1])
    not_speed = [claim for claim in again.claims if claim.key != "fast"]
    assert not_speed == [claim for claim in outcome.claims if claim.key != "fast"]


def test_another_study_is_not_overwritten(outcome):
    with pytest.raises(FileExistsError, match="holds another study"):
        run_study(tiny(seed=5), outcome.folder)


@pytest.mark.skipif(sys.platform == "win32", reason="locks are POSIX")
def test_a_running_study_loses_nothing_to_another(tmp_path):
    """Once its figures were cleared before the lock was asked for."""
    (tmp_path / "study.toml").write_text(f"{run.MARK}the one that runs")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "figure_02.png").write_text("its figure")
    with (
        opened(tmp_path / "stages", lambda *words: None),
        pytest.raises(FileExistsError, match="another study is running"),
    ):
        run_study(tiny(), tmp_path)
    assert (tmp_path / "figures" / "figure_02.png").exists()
    assert "the one that runs" in (tmp_path / "study.toml").read_text()


def test_the_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match="is not of a study of labelwise"):
        run_study(tiny(), tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_study_that_failed_leaves_its_folder_to_another(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "study.toml").write_text(f"{run.MARK}one that never ended")
    small = {"labels": ("mle-rician",), "trainings": 1, "own_weight": 0, "absolute_loss": False}
    found = run_study(tiny(**small), folder)
    assert "spread" not in {claim.key for claim in found.claims}  # nothing was taught the truth
    assert "beats-mle" in {claim.key for claim in found.claims}


def test_a_fixed_parameter_has_no_bins(tmp_path):
    study = tiny()
    ranges = dict(study.prior.describe()["ranges"], f=(0.3, 0.3))
    fixed = tiny(prior=type(study.prior)(ranges), phantom=True)
    with pytest.raises(ValueError, match="f has a single value"):
        run_study(fixed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_trainings_differ_and_errors_say_so(outcome):
    """The noise of the test signals alone is far smaller."""
    claim = next(claim for claim in outcome.claims if claim.key == "everywhere")
    assert all(part.error > 0 for part in claim.parts)  # shares of grid points have no noise
