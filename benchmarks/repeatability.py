"""How estimates agree between repeats of a scan, and what they predict, for fits and networks.

    python benchmarks/repeatability.py dwi.nii.gz dwi.bval repeats.tsv mask.nii.gz rois.nii.gz

`repeats.tsv` has the columns `volume` (from 0) and `repeat`; all repeats have the same b-values, in
any order. The noise is that of the whole scan (`auto`): a floor, which enters the likelihood, and
the scatter between repeats, which widens intervals (docs/decisions/0012). Three tables by region:

variation: each repeat is estimated alone; the mean over repeats of the region's median, and its
coefficient of variation, with its standard error CV / √(2 (n - 1)).

prediction: each repeat is left out in turn and predicted from the others. The share of its
measurements inside a 95 % predictive interval: the quantiles of Rician noise about the signal of
the estimate, with the variance of that signal (from the Fisher information) added to that of the
noise. With the scatter as the noise, and with the floor alone.

halves: the repeats in two halves, in all ways; the share of voxels in which the difference of the
two estimates is inside its 95 % interval, which is made of the two by the method of variance
estimates recovery (Zou & Donner 2008, doi:10.1002/sim.3095). Not for the ground truth: both halves
are pulled to the same prior, so that their intervals say little about the difference.
"""

import csv
import itertools
import sys
import tempfile
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.stats import rice

import labelwise as lw
from labelwise.evaluation.cramer_rao import fisher_information
from labelwise.mapping.method import excess, with_scatter
from labelwise.models.evaluate import jacobian, signals


class Scan:
    """The voxels (N, R, B) of R repeats with B measurements each, their regions and their noise."""

    def __init__(self, image, bvals, table, mask, regions):
        with open(table, encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        repeats = defaultdict(list)
        for row in rows:
            repeats[row["repeat"]].append(int(row["volume"]))
        b = lw.read_bvals(bvals)
        order = np.array([sorted(each, key=lambda i: b[i]) for each in repeats.values()])
        self.b = b[order[0]]
        assert all(np.array_equal(b[each], self.b) for each in order), "repeats differ in b"
        regions = np.asarray(nib.load(regions).dataobj).astype(int)
        inside = (np.asarray(nib.load(mask).dataobj) > 0.5) & (regions > 0)
        self.data = np.asarray(nib.load(image).dataobj, np.float32)[inside][:, order]
        self.region = regions[inside]
        with tempfile.TemporaryDirectory() as folder:
            report = lw.fit_image(image, lw.IVIM(b), mask=mask, out=Path(folder) / "fit")
        self.floor = report.sigma.sigma
        self.scatter = report.sigma.scatter or self.floor
        levels = self.data[..., 0].mean(axis=1) / self.floor
        self.snr = tuple(np.percentile(levels, [1, 99]))

    def model(self, repeats):
        return lw.IVIM(np.tile(self.b, repeats))

    def methods(self, repeats):
        """The estimators of so many repeats, by name."""
        model = self.model(repeats)
        network = lw.train(model, snr=self.snr, intervals=True)
        networks = {f"network, alpha {alpha:g}": network.with_alpha(alpha) for alpha in (1, 0.5, 0)}
        return {"fit": lw.MaximumLikelihood(model, lw.Rician(), intervals=0.95), **networks}

    def estimate(self, method, repeats):
        """Of some repeats, with intervals widened by the scatter."""
        signal = self.data[:, list(repeats)].reshape(len(self.data), -1)
        found = method(signal, self.floor)
        found.stats.setdefault("residual", np.ones(len(signal)))  # of a network: not calculated
        widen = excess(self.scatter, np.full((1, 1), self.floor))
        return replace(found, stats=with_scatter(found, widen))

    def by_region(self, values):
        """The mean of values (N, ..) in each region, in percent, as text."""
        regions = np.unique(self.region)
        means = [100 * np.nanmean(values[self.region == region], axis=0) for region in regions]
        return "   ".join(
            f"{region}: " + " ".join(f"{each:5.1f}" for each in np.atleast_1d(mean))
            for region, mean in zip(regions, means, strict=True)
        )


def variation(scan):
    count = scan.data.shape[1]
    for name, method in scan.methods(1).items():
        found = np.array([scan.estimate(method, [each]).values for each in range(count)])
        for region in np.unique(scan.region):
            medians = np.nanmedian(found[:, scan.region == region], axis=1)
            spread = np.std(medians, axis=0, ddof=1) / np.mean(medians, axis=0)
            error = spread / np.sqrt(2 * (count - 1))
            columns = zip(
                scan.model(1).parameters, medians.mean(axis=0), spread, error, strict=True
            )
            text = "   ".join(
                f"{p.name} {mean:.3g}, CV {100 * cv:.1f} ± {100 * se:.1f} %"
                for p, mean, cv, se in columns
                if p.name != "S0"
            )
            print(f"{name:<20} region {region}: {text}", flush=True)


def prediction(scan):
    count = scan.data.shape[1]
    model, whole = scan.model(1), scan.model(count - 1)
    for name, method in scan.methods(count - 1).items():
        inside = {"scatter": [], "floor": []}
        for left in range(count):
            params = scan.estimate(method, set(range(count)) - {left}).values.astype(float)
            good = np.isfinite(params).all(axis=1)
            params = np.where(good[:, None], params, [1, 0.1, 1, 10])
            expected, slopes = signals(model, params), jacobian(model, params)
            for kind, noise in (("scatter", scan.scatter), ("floor", scan.floor)):
                information = fisher_information(whole, lw.Rician(), params, noise)
                covariance = np.linalg.pinv(information, rcond=1e-9, hermitian=True)
                variance = np.einsum("nmp,npq,nmq->nm", slopes, covariance, slopes)
                total = np.sqrt(noise**2 + variance)
                low, high = rice.ppf([[[0.025]], [[0.975]]], expected / total, scale=total)
                measured = scan.data[:, left]
                held = (low <= measured) & (measured <= high)
                inside[kind].append(np.where(good[:, None], held, np.nan))
        for kind, shares in inside.items():
            print(f"{name:<20} {kind:<8}", scan.by_region(np.mean(shares, axis=(0, 2))), flush=True)


def halves(scan):
    count = scan.data.shape[1]
    sides = [
        (side, tuple(sorted(set(range(count)) - set(side))))
        for side in itertools.combinations(range(count), count // 2)
        if 0 in side
    ]
    for name, method in scan.methods(count // 2).items():
        if name.endswith("alpha 0"):
            continue
        held = []
        for one, other in sides:
            a, b = scan.estimate(method, one), scan.estimate(method, other)
            below = [each.values - each.stats["low"] for each in (a, b)]
            above = [each.stats["high"] - each.values for each in (a, b)]
            change = a.values - b.values
            inside = (-np.hypot(above[0], below[1]) <= -change) & (
                -change <= np.hypot(below[0], above[1])
            )
            held.append(np.where(np.isfinite(change), inside, np.nan))
        print(f"{name:<20}", scan.by_region(np.mean(held, axis=0)), flush=True)


def main():
    warnings.simplefilter("ignore")
    scan = Scan(*sys.argv[1:])
    print(f"noise floor {scan.floor:.3g}, scatter {scan.scatter:.3g}; regions by number")
    names = ", ".join(parameter.name for parameter in scan.model(1).parameters)
    print("\nvariation of the median of a region between repeats")
    variation(scan)
    print("\nprediction: share in % of the left-out measurements inside 95 % intervals")
    prediction(scan)
    print(f"\nhalves: share in % of differences inside 95 % intervals, of {names}")
    halves(scan)


if __name__ == "__main__":
    main()
