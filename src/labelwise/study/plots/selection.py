"""The figures of a study, with captions: the paper's, by their numbers, and additional ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from labelwise.plots.curves import Panels, performance
from labelwise.study import methods
from labelwise.study.evidence import Evidence
from labelwise.study.plots.curves import binned, blend_curves, coverage_curves
from labelwise.study.plots.space import arrows, densities, fixed_points, maps
from labelwise.study.scan import Scan, ScanAssessment
from labelwise.types import Parameter

_LABELLED = (methods.MLE_RICIAN, methods.MLE_GAUSSIAN, methods.SELF, methods.GT)


@dataclass(frozen=True, eq=False)
class StudyFigure:
    """A figure before it is saved.

    Args:
        key: the name of its files.
        title: with the number that it has in the paper.
        caption: what it shows, and what differs from the paper.
        panels: its Axes.
    """

    key: str
    title: str
    caption: str
    panels: Panels


def figures(
    evidence: Evidence, scan: Scan | None, assessment: ScanAssessment | None
) -> Iterator[StudyFigure]:
    """Draw the figures that the evidence has the data for, one after the other.

    Args:
        evidence: of the first training.
        scan: the scan of the in vivo part, if there is one.
        assessment: what became of it.
    """
    study, low = evidence.study, evidence.low
    shown = [p for p in study.model.parameters if p.name in study.free]
    yield from _performance(evidence, shown)
    spaces = list(combinations(shown, 2)) or list(combinations(study.model.parameters, 2))
    both = evidence.known(methods.GT, methods.MLE_MEAN)
    if len(both) == 2 and spaces:
        panels = arrows(evidence.grids[low], both, spaces[::-1], f"SNR {low:g}")
        yield StudyFigure(
            "figure_04",
            f"Figure 4. Mean estimates over parameter space, SNR {low:g}",
            "Arrows point from the true values to the mean estimate, averaged over noise and the "
            "other parameters. Where they converge, estimates distinguish true values less well.",
            panels,
        )
    if scan is not None and assessment is not None:
        yield from _in_vivo(evidence, scan, assessment, shown)
    yield from _weights(evidence, shown)
    both = evidence.known(methods.MLE_GAUSSIAN, methods.MLE_RICIAN)
    if len(both) == 2 and spaces:
        floor = study.noise_floor
        pairs = [pair for pair in spaces if floor in (None, pair[0].name, pair[1].name)]
        pairs = pairs[:1] or spaces[:1]
        yield StudyFigure(
            "figure_09",
            f"Figure 9. Gaussian against Rician labels, SNR {low:g}",
            "As figure 4, for labels fitted under each of the two noise models.",
            arrows(evidence.grids[low], both, pairs, f"SNR {low:g}"),
        )
    chosen = evidence.known(evidence.mle_network, methods.GT, methods.HYBRID)
    if len(chosen) == 3:
        yield StudyFigure(
            "figure_10",
            f"Figure 10. The hybrid, alpha = {study.hybrid:g}, SNR {low:g}",
            f"A network trained on labels mixed from {study.hybrid:g} parts of maximum-likelihood "
            f"estimate and {1 - study.hybrid:g} of the truth, and the networks trained on either.",
            performance(evidence.grids[low], chosen, shown, f"SNR {low:g}"),
        )
    yield from _whole_space(evidence, shown)
    yield from _additional(evidence, shown)


def _performance(evidence: Evidence, shown: list[Parameter]) -> Iterator[StudyFigure]:
    snrs = sorted(evidence.study.snrs)
    numbers = {snrs[0]: 2, snrs[-1]: 3} if len(snrs) > 1 else {snrs[0]: 2}
    for snr in snrs:
        number = numbers.get(snr)
        key = f"figure_{number:02}" if number else f"performance_snr{snr:g}"
        chosen = evidence.known(methods.MLE_MEAN, *_LABELLED)
        yield StudyFigure(
            key,
            f"{f'Figure {number}. ' if number else ''}Performance at SNR {snr:g}",
            "Bias, standard deviation under noise and RMSE against the true value, averaged over "
            "the other parameters. Black: conventional maximum likelihood, started from the means "
            "of the prior. Red: networks that imitate it. Blue: trained on groundtruth labels. "
            "Shaded: two standard errors (of noise).",
            performance(evidence.grids[snr], chosen, shown, f"SNR {snr:g}"),
        )


def _in_vivo(
    evidence: Evidence, scan: Scan, assessment: ScanAssessment, shown: list[Parameter]
) -> Iterator[StudyFigure]:
    in_vivo = assessment.in_vivo
    there = in_vivo.binned.estimator.values.tolist()
    chosen = [name for name in (methods.MLE_MEAN, *_LABELLED) if name in there]
    used, voxels = in_vivo.binned.attrs["used"], in_vivo.binned.attrs["voxels"]
    simulated = " Simulated: the paper's own scan is not available." if scan.simulated else ""
    where = f"{scan.name}, {scan.repeats.number} acquisitions"
    yield StudyFigure(
        "figure_05",
        f"Figure 5. {'In vivo, on the simulated pelvis' if scan.simulated else 'In vivo'}",
        f"Each of {scan.repeats.number} single acquisitions compared with the gold standard from "
        f"all of them, in bins of the gold standard; bottom: voxels in each bin. {used:,} of "
        f"{voxels:,} "
        f"voxels: the others have no gold standard inside the simulated ranges.{simulated}",
        binned(in_vivo.binned, chosen, shown, where),
    )
    yield StudyFigure(
        "figure_06",
        "Figure 6. The matching synthetic set",
        "As figure 5, for simulated signals whose true values are the gold standard's. Features "
        "found in both are explained by the distribution of the parameters.",
        binned(in_vivo.matched, chosen, shown, "synthetic, with the parameters of figure 5"),
    )
    slice_ = assessment.maps.attrs["slice"]
    yield StudyFigure(
        "figure_07",
        f"Figure 7. Maps{' of the simulated pelvis' if scan.simulated else ''}",
        "First column: the gold standard, from all acquisitions; the others from the first one "
        f"alone. Slice {slice_}; one colour range per row.{simulated}",
        maps(assessment.maps, shown, scan.name),
    )


def _weights(evidence: Evidence, shown: list[Parameter]) -> Iterator[StudyFigure]:
    own = {p.name: methods.own_weight(p.name) for p in shown}
    columns = [p for p in shown if evidence.known(own[p.name])]
    if columns and evidence.known(evidence.mle_network):
        low = evidence.low
        yield StudyFigure(
            "figure_08",
            f"Figure 8. Loss weights W, SNR {low:g}",
            f"Each column: the network with equal weights, and one whose loss weights the errors "
            f"of that parameter {evidence.study.own_weight:,.0f} times more.",
            performance(
                evidence.grids[low],
                {p.name: [evidence.mle_network, own[p.name]] for p in columns},
                columns,
                f"SNR {low:g}",
            ),
        )


def _whole_space(evidence: Evidence, shown: list[Parameter]) -> Iterator[StudyFigure]:
    study, low = evidence.study, evidence.low
    if len(evidence.known(methods.GT, evidence.mle_network)) < 2:
        return
    pair = methods.GT, evidence.mle_network
    yield StudyFigure(
        "figure_11",
        f"Figure 11. All grid points without averaging, SNR {low:g}",
        "Bias, standard deviation and RMSE of the two methods at each grid point. They are equal "
        "on "
        "the dashed line.",
        densities(evidence.grids[low], *pair, shown, f"SNR {low:g}"),
    )
    floor = study.noise_floor or shown[0].name
    others = [p for p in shown if p.name != floor]
    (fixed,) = (p for p in shown if p.name == floor) if floor in study.free else (None,)
    if fixed is not None and len(others) >= 2 and len(study.grid.axes[floor]) >= 4:
        yield StudyFigure(
            "figure_12",
            f"Figure 12. Two values of {floor}, SNR {low:g}",
            f"Left and right: {pair[0]} minus {pair[1]} at one true value each, over the "
            f"{others[0].name}-{others[-1].name} plane. Middle: marginal curves as in figure 2.",
            fixed_points(evidence.grids[low], *pair, fixed, others[0], others[-1], f"SNR {low:g}"),
        )


def _additional(evidence: Evidence, shown: list[Parameter]) -> Iterator[StudyFigure]:
    study, low = evidence.study, evidence.low
    inner = {
        alpha: methods.blend(alpha) for alpha in study.blend if evidence.known(methods.blend(alpha))
    }
    if inner:
        by_alpha = {0.0: methods.GT, **inner, 1.0: evidence.mle_network}
        trained = {study.hybrid: methods.HYBRID} if evidence.known(methods.HYBRID) else None
        yield StudyFigure(
            "blend",
            f"Blends of two networks, SNR {low:g} (not in the paper)",
            "Outputs of two networks, averaged with weights alpha and 1 - alpha. Alpha is that "
            "of `labelwise map`: it needs no training. The open marker is the network trained on "
            "mixed labels.",
            blend_curves(evidence.grids[low], by_alpha, shown, f"SNR {low:g}", trained),
        )
    if evidence.intervals is not None:
        yield StudyFigure(
            "intervals",
            f"Coverage of 95 % intervals, SNR {low:g} (not in the paper)",
            "Top: the share of intervals that hold the truth, against the true value, averaged "
            "over the other parameters; the dashed line is at 95 %. Bottom: their interval score, "
            "in the unit of the parameter, which is low if they are short and hold the truth. MLE "
            "labels have confidence intervals, meant to hold for every truth; groundtruth labels "
            "have credible ones, meant to hold on average over the prior. Ends of blends lie "
            "between the two. The first and the last true values are the limits of the prior, "
            "which credible intervals cannot exceed.",
            coverage_curves(evidence.intervals, shown, f"SNR {low:g}"),
        )
    chosen = evidence.known(
        methods.GT, methods.GT_ABSOLUTE, evidence.mle_network, methods.MLE_ABSOLUTE
    )
    if methods.GT_ABSOLUTE in chosen:
        yield StudyFigure(
            "absolute_loss",
            f"The absolute loss, SNR {low:g} (not in the paper)",
            "Networks trained with the mean absolute error beside those of figure 2. The paper "
            "leaves this loss to future work (section 4.4).",
            performance(evidence.grids[low], chosen, shown, f"SNR {low:g}"),
        )
    variants = [
        name
        for base in (methods.GT, evidence.mle_network)
        for name in (base, *methods.larger(base, study.wide, study.deep))
        if evidence.known(name)
    ]
    if study.wide or study.deep:
        yield StudyFigure(
            "variants",
            f"Wider and deeper networks, SNR {low:g} (section 3.2)",
            "The networks of figure 2 beside larger ones trained on the same labels.",
            performance(evidence.grids[low], variants, shown, f"SNR {low:g}"),
        )
