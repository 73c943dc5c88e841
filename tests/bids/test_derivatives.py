from pathlib import Path

import pytest

from labelwise import IVIM, T2, T1InversionRecovery
from labelwise.bids.derivatives import Job, Roots
from labelwise.bids.layout import Scan
from labelwise.models import T2Biexponential

TIMES = [10.0, 30.0, 50.0, 90.0, 150.0, 250.0]


def job(name, model, suffix, folder="anat"):
    return Job(Scan(Path("sub-01", folder), "sub-01", suffix, (), {}, ()), name, model)


JOBS = {
    "dwi": job("ivim", IVIM([0, 0.1, 0.2, 0.8]), "dwi", "dwi"),
    "IRT1": job("t1_ir", T1InversionRecovery([50, 400, 1100, 2500]), "IRT1"),
    "MESE": job("t2", T2(TIMES), "MESE"),
    "MEGRE": job("t2", T2(TIMES), "MEGRE"),
    "two": job("t2_biexponential", T2Biexponential(TIMES), "MESE"),
    "own": job("my_model.py:My_T2", T2(TIMES), "MESE"),
}


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        ("dwi", "f", "sub-01_model-ivim_param-f_dwimap"),
        ("dwi", "D_slow_standard_error", "sub-01_model-ivim_param-Dslow_desc-standardError_dwimap"),
        ("dwi", "f_low", "sub-01_model-ivim_param-f_desc-low_dwimap"),
        ("dwi", "on_bound", "sub-01_model-ivim_desc-onBound_dwimap"),
        ("IRT1", "T1", "sub-01_T1map"),
        ("IRT1", "T1_high", "sub-01_desc-high_T1map"),
        ("IRT1", "S0", "sub-01_model-t1ir_param-S0_IRT1map"),
        ("MESE", "T2", "sub-01_T2map"),
        ("MEGRE", "T2", "sub-01_T2starmap"),
        ("MEGRE", "T2_uncertainty", "sub-01_desc-uncertainty_T2starmap"),
        ("two", "T2_short", "sub-01_model-t2biexponential_param-T2short_MESEmap"),
        ("own", "T2", "sub-01_desc-myT2_T2map"),
        ("own", "T2_standard_error", "sub-01_desc-myT2StandardError_T2map"),
    ],
)
def test_names(key, name, expected):
    assert JOBS[key].file_of(name) == expected


def test_uris_do_not_depend_on_where_the_folders_are(tmp_path):
    roots = Roots(tmp_path / "in", tmp_path / "out", tmp_path / "in" / "derivatives" / "m", "")
    assert roots.links == {"source": "../in", "masks": "../in/derivatives/m"}
    assert roots.uri(tmp_path / "in" / "sub-01" / "a.nii") == "bids:source:sub-01/a.nii"
    assert roots.uri(tmp_path / "in" / "derivatives" / "m" / "b.nii") == "bids:masks:b.nii"
    assert roots.uri(tmp_path / "out" / "networks" / "n") == "bids::networks/n"
