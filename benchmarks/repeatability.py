"""How much estimates of a region differ between repeats of a scan, for fits and networks by alpha.

    python benchmarks/repeatability.py dwi.nii.gz dwi.bval repeats.tsv mask.nii.gz rois.nii.gz

`repeats.tsv` has the columns `volume` (from 0) and `repeat`. Each repeat is estimated alone, with
one network for all of them and the sigma of the whole scan (`auto`). Printed by region: the mean
over repeats of its median, and the coefficient of variation, with its standard error
CV / √(2 (n - 1)).
"""

import csv
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np

import labelwise as lw


def main():
    image, bvals, table, mask, regions = sys.argv[1:]
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    repeats = defaultdict(list)
    for row in rows:
        repeats[row["repeat"]].append(int(row["volume"]))
    b = lw.read_bvals(bvals)
    data = np.asarray(nib.load(image).dataobj, np.float32)
    inside = np.asarray(nib.load(mask).dataobj) > 0.5
    labels = np.asarray(nib.load(regions).dataobj).astype(int)[inside]
    data = data[inside]
    first = lw.IVIM(b[next(iter(repeats.values()))])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = lw.fit_image(image, lw.IVIM(b), mask=mask, out=Path(folder) / "fit")
        sigma = report.sigma.sigma
        levels = np.percentile(data[:, b == b.min()].mean(axis=1) / sigma, [1, 99])
    print(f"sigma {sigma:.3g}; a network for SNR {levels[0]:.3g} to {levels[1]:.3g}")
    network = lw.train(first, snr=tuple(levels))
    methods = {f"network, alpha {alpha:g}": network.with_alpha(alpha) for alpha in (1, 0.5, 0)}
    methods["fit"] = lw.MaximumLikelihood(first, lw.Rician())
    for name, method in methods.items():
        found = []
        for volumes in repeats.values():
            model = lw.IVIM(b[volumes])
            assert np.array_equal(np.sort(model.b), np.sort(first.b)), "repeats differ in b"
            order = np.array(volumes)[np.argsort(model.b, kind="stable")]
            order = order[np.argsort(np.argsort(first.b, kind="stable"), kind="stable")]
            found.append(method(data[:, order], sigma).values)
        for region in np.unique(labels[labels > 0]):
            medians = np.nanmedian(np.array(found)[:, labels == region], axis=1)
            variation = np.std(medians, axis=0, ddof=1) / np.mean(medians, axis=0)
            error = variation / np.sqrt(2 * (len(medians) - 1))
            text = "   ".join(
                f"{p.name} {mean:.3g}, CV {100 * cv:.1f} ± {100 * se:.1f} %"
                for p, mean, cv, se in zip(
                    first.parameters, medians.mean(axis=0), variation, error, strict=True
                )
                if p.name != "S0"
            )
            print(f"{name:<20} region {region}: {text}", flush=True)


if __name__ == "__main__":
    main()
