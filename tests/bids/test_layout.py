import json
import pickle

import numpy as np
import pytest

from labelwise.bids.layout import scans_of, subjects_of
from labelwise.types import InputError

STEM = "sub-01_ses-1"


def scan(root, suffix, subject="01", **options):
    (found,) = (each for each in scans_of(root, subject, **options) if suffix in str(each))
    return found


def change(path, **entries):
    """Entries of a sidecar; None removes one."""
    record = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


@pytest.fixture
def anat(cohort):
    return cohort / "sub-01" / "ses-1" / "anat"


def test_series_of_all_kinds_in_the_units_of_the_models(cohort):
    found = scans_of(cohort, "01")
    assert [each.name for each in found] == [
        f"{STEM}_IRT1",
        f"{STEM}_MEGRE",
        f"{STEM}_MESE",
        f"{STEM}_acq-a_dwi",
        "sub-01_ses-2_acq-a_dwi",
    ]
    ir, _, mese, dwi, _ = found
    np.testing.assert_allclose(ir.settings["ti"], [50, 400, 1100, 2500])
    np.testing.assert_allclose(mese.settings["te"], [10, 30, 50, 80, 120])
    np.testing.assert_allclose(dwi.settings["b"][-2:], [0.6, 0.8])
    assert [len(each.images) for each in (ir, mese, dwi)] == [4, 5, 1]
    assert dwi.sources == (cohort / "acq-a_dwi.bval",)  # inherited from the top
    assert cohort / "IRT1.json" in ir.sources  # no entities: it applies to all


def test_the_nearest_file_applies(cohort):
    near = cohort / "sub-01" / "ses-1" / "dwi" / f"{STEM}_acq-a_dwi.bval"
    near.write_text("0 0 0 0 10 20 50 100 200 400 600 900")
    here, there = (each.settings["b"][-1] for each in scans_of(cohort, "01")[-2:])
    assert (here, there) == (0.9, 0.8)


def test_files_are_ordered_by_their_number(anat, cohort):
    change(anat / f"{STEM}_inv-1_IRT1.json", InversionTime=3.0)
    assert scan(cohort, "IRT1").settings["ti"].tolist() == [3000, 400, 1100, 2500]


def test_phase_and_other_parts_are_left_out(anat, cohort):
    for number in range(1, 5):
        (anat / f"{STEM}_inv-{number}_part-phase_IRT1.nii.gz").touch()
        for ending in (".nii.gz", ".json"):
            old = anat / f"{STEM}_inv-{number}_IRT1{ending}"
            old.rename(anat / f"{STEM}_inv-{number}_part-mag_IRT1{ending}")
    found = scan(cohort, "IRT1")
    assert found.stem == STEM
    assert all("part-mag" in path.name for path in found.images)


def test_masks_and_regions(cohort):
    masks = cohort / "derivatives" / "masks"
    found = scan(cohort, "IRT1", masks=masks)
    assert found.mask == masks / found.folder / f"{STEM}_desc-tissue_mask.nii.gz"
    assert found.regions == masks / found.folder / f"{STEM}_desc-tissue_dseg.nii.gz"
    assert found.region_names == {1: "liver", 2: "kidney"}


def test_the_mask_with_most_of_the_entities_is_taken(cohort):
    masks = cohort / "derivatives" / "masks"
    folder = masks / "sub-01" / "ses-1" / "dwi"
    own = folder / f"{STEM}_acq-a_desc-tissue_mask.nii.gz"
    own.touch()
    (folder / f"{STEM}_acq-other_desc-tissue_mask.nii.gz").touch()
    assert scan(cohort, f"{STEM}_acq-a_dwi", masks=masks).mask == own


def refuse(cohort, suffix, *words, **options):
    found = scan(cohort, suffix, **options)
    assert isinstance(found, InputError)
    assert all(word in str(found) for word in words), str(found)


def test_a_missing_time(anat, cohort):
    change(anat / f"{STEM}_inv-3_IRT1.json", InversionTime=None)
    refuse(cohort, "IRT1", "InversionTime: no sidecar of", "inv-3", "in seconds")
    assert len(scans_of(cohort, "01")) == 5  # the others are not affected


def test_times_in_another_unit(anat, cohort):
    for number in range(1, 5):
        change(anat / f"{STEM}_inv-{number}_IRT1.json", InversionTime=1000.0 * number)
    refuse(cohort, "IRT1", "1000 x InversionTime")


def test_contradictory_sidecars(anat, cohort):
    change(anat / f"{STEM}_inv-2_IRT1.json", FlipAngle=30)
    refuse(cohort, "IRT1", "FlipAngle is 90", "but 30", "inv-2")


def test_two_files_of_one_number(anat, cohort):
    (anat / f"{STEM}_inv-01_IRT1.nii.gz").touch()
    refuse(cohort, "IRT1", "has the same inv as")
    (anat / f"{STEM}_inv-01_IRT1.nii.gz").rename(anat / f"{STEM}_IRT1.nii.gz")
    refuse(cohort, "IRT1", f"{STEM}_IRT1.nii.gz: its name has no inv-")


def test_two_files_that_apply_in_one_folder(cohort):
    (cohort / "dwi.bval").write_text("0 100")
    refuse(cohort, f"{STEM}_acq-a_dwi", "dwi.bval", "BIDS allows one")


def test_directions_for_other_volumes(cohort):
    (cohort / "acq-a_dwi.bvec").write_text("0 1\n0 0\n0 0\n")
    refuse(cohort, f"{STEM}_acq-a_dwi", "3 rows of 12 numbers", "got 3 of 2, 2, 2")


def test_no_b_values(cohort):
    (cohort / "acq-a_dwi.bval").unlink()
    refuse(cohort, f"{STEM}_acq-a_dwi", "no .bval file applies to", "beside it")


def test_a_sidecar_that_is_no_json(anat, cohort):
    (anat / f"{STEM}_inv-2_IRT1.json").write_text("{")
    refuse(cohort, "IRT1", "inv-2_IRT1.json: not valid JSON")


def test_no_mask(cohort):
    masks = cohort / "derivatives" / "masks"
    (masks / "sub-01" / "ses-1" / "dwi" / f"{STEM}_desc-tissue_mask.nii.gz").unlink()
    refuse(cohort, f"{STEM}_acq-a_dwi", "has no mask for it", masks=masks)


def test_two_masks(cohort):
    masks = cohort / "derivatives" / "masks"
    (masks / "sub-01" / "ses-1" / "dwi" / f"{STEM}_desc-brain_mask.nii.gz").touch()
    refuse(cohort, f"{STEM}_acq-a_dwi", "fit both", masks=masks)


def test_subjects_are_sorted_and_named_either_way(cohort):
    assert subjects_of(cohort) == ["01", "02", "03", "04", "05", "06"]
    assert subjects_of(cohort, ["sub-03", "01"]) == ["01", "03"]
    with pytest.raises(InputError, match="no folder sub-7"):
        subjects_of(cohort, ["7"])
    with pytest.raises(InputError, match=r"dataset_description\.json, which is missing"):
        subjects_of(cohort / "sub-01")


def test_sessions(cohort):
    assert [each.name for each in scans_of(cohort, "01", ["ses-2"])] == ["sub-01_ses-2_acq-a_dwi"]
    with pytest.raises(InputError, match="has no series in ses-3"):
        scans_of(cohort, "01", ["3"])


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the dataset was run')",)


def test_a_pickle_in_the_dataset_is_not_read(cohort):
    (cohort / ".ancpbids-dataset.pickle").write_bytes(pickle.dumps(Bomb()))
    assert len(scans_of(cohort, "01")) == 5
