"""The schemas of JSON are published, and records of version 0.1 are valid and can be read.

That today's commands write valid records is tested beside each command (`helpers.valid`). The files
in `records_of_0.1` were written by that version (`study.json` is cut) and must not be made again.
"""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

import labelwise as lw
from labelwise.bids.cohort import group
from labelwise.io.prior import read_prior
from labelwise.io.schemas import SCHEMAS, schema

RECORDS = Path(__file__).parents[1] / "data" / "records_of_0.1"
SERIES = "derivative/sub-04/logs/sub-04_ses-1_acq-b_model-adc_dwi.json"
TABLES = ("models", "presets")
FILES = {"bids-series": SERIES} | {
    name: f"{name}.json" for name in SCHEMAS if name not in (*TABLES, "bids-series")
}


@pytest.mark.parametrize("name", FILES)
def test_a_record_of_version_0_1_is_valid(name):
    record = json.loads((RECORDS / FILES[name]).read_text(encoding="utf-8"))
    SCHEMAS[name].validate_python(record)
    entry = "Schema" if name == "bids-map" else "schema"
    assert record[entry] == f"labelwise {name} 1"
    for changed in (record | {entry: f"labelwise {name} 0"}, {entry: record[entry]}):
        with pytest.raises(ValidationError):
            SCHEMAS[name].validate_python(changed)


@pytest.mark.parametrize("name", SCHEMAS)
def test_published_schemas_name_their_version_and_allow_further_entries(name):
    published = schema(name)
    assert json.loads(json.dumps(published)) == published
    if name not in TABLES:
        entry = published["properties"]["Schema" if name == "bids-map" else "schema"]
        assert entry["const"].startswith(f"labelwise {name} ")
        assert published["additionalProperties"] is True
        assert published["description"]


def test_maps_of_version_0_1_are_a_prior():
    prior = read_prior(RECORDS / "maps", ("S0", "ADC"))
    assert len(prior.params) == 12


@pytest.mark.filterwarnings("ignore::UserWarning")  # noise-free data
def test_maps_of_version_0_1_are_replaced_with_overwrite(tmp_path):
    maps = shutil.copytree(RECORDS / "maps", tmp_path / "maps")
    (maps / "mine.txt").write_text("")
    signal = 500 * np.exp(-np.outer(np.linspace(0.5, 2, 4), [0, 0.4, 0.8])).reshape(4, 1, 1, 3)
    nib.save(nib.Nifti1Image(signal.astype(np.float32), np.eye(4)), tmp_path / "dwi.nii")
    model = lw.ADC([0, 0.4, 0.8])
    options = {"sigma": 5.0, "uncertainty": "standard_error", "overwrite": True}
    lw.fit_image(tmp_path / "dwi.nii", model, out=maps, **options)
    assert not (maps / "ADC_low.nii.gz").exists()  # of the earlier run only
    assert (maps / "mine.txt").exists()


def test_networks_of_version_0_1_are_loaded():
    network = lw.load(RECORDS / "net.safetensors")
    estimate = network(np.full((2, 5), 400.0), sigma=12.0)
    assert np.isfinite(estimate["ADC"]).all()


def test_a_derivative_of_version_0_1_has_its_table(tmp_path):
    out = shutil.copytree(RECORDS / "derivative", tmp_path / "out")
    lines = group(out).read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("sub-04\t") and "\tADC\t" in line for line in lines)
