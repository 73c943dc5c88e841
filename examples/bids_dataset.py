"""Write a small simulated BIDS dataset: `python examples/bids_dataset.py OUT`.

Six subjects: 01 to 03 have diffusion series of protocol `a` in two sessions, and in the first also
inversion recovery (IRT1), spin echoes (MESE) and gradient echoes (MEGRE); 04 to 06 have diffusion
series of protocol `b`. One file of 06 is cut short. Masks and regions are in `derivatives/masks`.
Settings of the protocols are inherited from the top folder.
"""

import json
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from labelwise import IVIM, T2, T1InversionRecovery

SHAPE = (10, 9, 2)
PROTOCOLS = {
    "a": [0, 0, 0, 0, 10, 20, 50, 100, 200, 400, 600, 800],
    "b": [0, 0, 0, 0, 20, 40, 80, 150, 300, 500, 800, 1000],
}
INVERSIONS, ECHOES = (0.05, 0.4, 1.1, 2.5), (0.01, 0.03, 0.05, 0.08, 0.12)
SIGMA = 12.0
# per region: S0, f, D_slow, D_fast; T1 and T2 in ms
TISSUES = {
    1: ("liver", (500.0, 0.25, 1.1, 60.0), 800.0, 40.0),
    2: ("kidney", (700.0, 0.15, 1.8, 25.0), 1300.0, 90.0),
}


def regions() -> np.ndarray:
    """Two blocks of tissue in air."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 2:7] = 1
    labels[5:8, 2:7] = 2
    return labels


def measured(model, params, seed: int) -> np.ndarray:
    """Rician images of a model, with parameters by region."""
    clean = np.zeros((*SHAPE, len(np.asarray(model.signal(*params[1])))))
    for label, values in params.items():
        clean[regions() == label] = np.asarray(model.signal(*values))
    real, imaginary = np.random.default_rng(seed).normal(0, SIGMA, (2, *clean.shape))
    return np.hypot(clean + real, imaginary).astype(np.float32)


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([2.0, 2.0, 4.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def text(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data, indent=2) + "\n")


def write(root: Path) -> None:
    """Write the dataset and its masks."""
    text(root / "dataset_description.json", {"Name": "Simulated cohort", "BIDSVersion": "1.10.0"})
    text(root / "README", "Simulated by examples/bids_dataset.py of labelwise.\n")
    text(root / "IRT1.json", {"FlipAngle": 90})
    for name, bvals in PROTOCOLS.items():
        text(root / f"acq-{name}_dwi.bval", " ".join(map(str, bvals)) + "\n")
        rows = ["0" if b == 0 else "1" for b in bvals], ["0"] * len(bvals), ["0"] * len(bvals)
        text(root / f"acq-{name}_dwi.bvec", "\n".join(" ".join(row) for row in rows) + "\n")
    masks = root / "derivatives" / "masks"
    text(
        masks / "dataset_description.json",
        {
            "Name": "Masks",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "bids_dataset.py"}],
        },
    )
    names = [f"{label}\t{name}" for label, (name, *_) in TISSUES.items()]
    text(masks / "desc-tissue_dseg.tsv", "\n".join(["index\tname", *names]) + "\n")
    ivim = {label: values for label, (_, values, _, _) in TISSUES.items()}
    t1 = {label: (values[0], t1, 2.0) for label, (_, values, t1, _) in TISSUES.items()}
    t2 = {label: (values[0], t2) for label, (_, values, _, t2) in TISSUES.items()}
    for index in range(1, 7):
        subject, protocol = f"sub-{index:02d}", "a" if index < 4 else "b"
        for session in (1, 2) if index < 4 else (1,):
            stem, folder = f"{subject}_ses-{session}", Path(subject, f"ses-{session}")
            model = IVIM(np.array(PROTOCOLS[protocol]) / 1000)
            image = root / folder / "dwi" / f"{stem}_acq-{protocol}_dwi.nii.gz"
            save(image, measured(model, ivim, 10 * index + session))
            kinds = ["dwi"]
            if index < 4 and session == 1:
                kinds.append("anat")
                collections = [
                    ("IRT1", "inv", "InversionTime", INVERSIONS, t1, T1InversionRecovery),
                    ("MESE", "echo", "EchoTime", ECHOES, t2, T2),
                    ("MEGRE", "echo", "EchoTime", ECHOES, t2, T2),
                ]
                for suffix, entity, entry, times, params, kind in collections:
                    data = measured(kind(1000 * np.array(times)), params, 100 * index)
                    for number, time in enumerate(times):
                        place = root / folder / "anat" / f"{stem}_{entity}-{number + 1}_{suffix}"
                        save(place.with_suffix(".nii.gz"), data[..., number])
                        text(place.with_suffix(".json"), {entry: time})
            for each in kinds:
                place = masks / folder / each / f"{stem}_desc-tissue"
                save(Path(f"{place}_mask.nii.gz"), (regions() > 0).astype(np.uint8))
                save(Path(f"{place}_dseg.nii.gz"), regions())
            if index == 6:
                image.write_bytes(image.read_bytes()[:2000])


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="bids-"))
    write(out)
    print(f"labelwise bids {out} OUT participant --masks {out}/derivatives/masks")
