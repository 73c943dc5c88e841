"""Which figures a study has: the paper's, by their numbers, and ours, with their captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from labelwise.study import methods as names
from labelwise.study.evidence import Evidence
from labelwise.study.plots.curves import Panels, binned, dial_curves, own_weights, performance
from labelwise.study.plots.space import arrows, densities, fixed_points, maps
from labelwise.study.scan import Assessed, Scan
from labelwise.types import Parameter

_LABELLED = (names.MLE_RICIAN, names.MLE_GAUSSIAN, names.SELF, names.GT)


@dataclass(frozen=True, eq=False)
class Drawn:
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


def figures(evidence: Evidence, scan: Scan | None, assessed: Assessed | None) -> Iterator[Drawn]:
    """Draw the figures that the evidence has the data for, one after the other.

    Args:
        evidence: of the first training.
        scan: the scan of the in vivo part, if there is one.
        assessed: what became of it.
    """
    study, low = evidence.study, evidence.low
    shown = [p for p in study.model.parameters if p.name in study.free]
    yield from _performance(evidence, shown)
    spaces = list(combinations(shown, 2)) or list(combinations(study.model.parameters, 2))
    both = evidence.known(names.GT, names.MLE_MEAN)
    if len(both) == 2 and spaces:
        panels = arrows(evidence.grids[low], both, spaces[::-1], f"SNR {low:g}")
        yield Drawn(
            "figure_04",
            f"Figure 4. What each method makes of parameter space, SNR {low:g}",
            "Arrows: from the true values to the mean estimate, averaged over noise and the other "
            "parameters. Where they run together, estimates tell true values apart less.",
            panels,
        )
    if scan is not None and assessed is not None:
        yield from _in_vivo(evidence, scan, assessed, shown)
    yield from _weights(evidence, shown)
    both = evidence.known(names.MLE_GAUSSIAN, names.MLE_RICIAN)
    if len(both) == 2 and spaces:
        floor = study.noise_floor
        pairs = [pair for pair in spaces if floor in (None, pair[0].name, pair[1].name)]
        pairs = pairs[:1] or spaces[:1]
        yield Drawn(
            "figure_09",
            f"Figure 9. Gaussian against Rician labels, SNR {low:g}",
            "As figure 4: labels fitted under the one noise model and the other.",
            arrows(evidence.grids[low], both, pairs, f"SNR {low:g}"),
        )
    chosen = evidence.known(evidence.fitted, names.GT, names.HYBRID)
    if len(chosen) == 3:
        yield Drawn(
            "figure_10",
            f"Figure 10. The hybrid, alpha = {study.hybrid:g}, SNR {low:g}",
            f"A network taught {study.hybrid:g} parts of the maximum-likelihood estimate and "
            f"{1 - study.hybrid:g} of the truth, between the networks taught one of them.",
            performance(evidence.grids[low], chosen, shown, f"SNR {low:g}"),
        )
    yield from _whole_space(evidence, shown)
    yield from _ours(evidence, shown)


def _performance(evidence: Evidence, shown: list[Parameter]) -> Iterator[Drawn]:
    snrs = sorted(evidence.study.snrs)
    numbers = {snrs[0]: 2, snrs[-1]: 3} if len(snrs) > 1 else {snrs[0]: 2}
    for snr in snrs:
        number = numbers.get(snr)
        key = f"figure_{number:02}" if number else f"performance_snr{snr:g}"
        chosen = evidence.known(names.MLE_MEAN, *_LABELLED)
        yield Drawn(
            key,
            f"{f'Figure {number}. ' if number else ''}Performance at SNR {snr:g}",
            "Bias, standard deviation under noise and RMSE against the true value, averaged over "
            "the other parameters. Black: conventional maximum likelihood, started from the means "
            "of the prior. Red: networks that imitate it. Blue: taught the truth. Shaded: two "
            "standard errors (of noise).",
            performance(evidence.grids[snr], chosen, shown, f"SNR {snr:g}"),
        )


def _in_vivo(
    evidence: Evidence, scan: Scan, assessed: Assessed, shown: list[Parameter]
) -> Iterator[Drawn]:
    vivo = assessed.vivo
    there = vivo.binned.estimator.values.tolist()
    chosen = [name for name in (names.MLE_MEAN, *_LABELLED) if name in there]
    used, voxels = vivo.binned.attrs["used"], vivo.binned.attrs["voxels"]
    simulated = " Simulated, not a scan: the paper's own cannot be had." if scan.simulated else ""
    where = f"{scan.name}, {scan.repeats.number} acquisitions"
    yield Drawn(
        "figure_05",
        f"Figure 5. {'In vivo, on the simulated pelvis' if scan.simulated else 'In vivo'}",
        f"Each of {scan.repeats.number} single acquisitions against the gold standard from all of "
        f"them, in bins of the gold standard; bottom: voxels in each bin. {used:,} of {voxels:,} "
        f"voxels: the others have no gold standard inside the simulated ranges.{simulated}",
        binned(vivo.binned, chosen, shown, where),
    )
    yield Drawn(
        "figure_06",
        "Figure 6. The matching synthetic set",
        "As figure 5, for simulated signals whose true values are the gold standard's: what is "
        "the same there and here, the distribution of parameters explains.",
        binned(vivo.matched, chosen, shown, "synthetic, with the parameters of figure 5"),
    )
    slice_ = assessed.maps.attrs["slice"]
    yield Drawn(
        "figure_07",
        f"Figure 7. Maps{' of the simulated pelvis' if scan.simulated else ''}",
        "First column: the gold standard, from all acquisitions; the others from the first one "
        f"alone. Slice {slice_}; one range of colours a row.{simulated}",
        maps(assessed.maps, shown, scan.name),
    )


def _weights(evidence: Evidence, shown: list[Parameter]) -> Iterator[Drawn]:
    own = {p.name: names.own_weight(p.name) for p in shown}
    columns = [p for p in shown if evidence.known(own[p.name])]
    if columns and evidence.known(evidence.fitted):
        low = evidence.low
        yield Drawn(
            "figure_08",
            f"Figure 8. Loss weights W, SNR {low:g}",
            f"Each column: the network with equal weights, and one whose loss weighs the errors of "
            f"that parameter {evidence.study.own_weight:,.0f} times more.",
            own_weights(
                evidence.grids[low],
                evidence.fitted,
                {p.name: own[p.name] for p in columns},
                columns,
                f"SNR {low:g}",
            ),
        )


def _whole_space(evidence: Evidence, shown: list[Parameter]) -> Iterator[Drawn]:
    study, low = evidence.study, evidence.low
    if len(evidence.known(names.GT, evidence.fitted)) < 2:
        return
    pair = names.GT, evidence.fitted
    yield Drawn(
        "figure_11",
        f"Figure 11. All grid points, nothing averaged, SNR {low:g}",
        "Each grid point's bias, standard deviation and RMSE by the two methods; on the line they "
        "are equal.",
        densities(evidence.grids[low], *pair, shown, f"SNR {low:g}"),
    )
    floor = study.noise_floor or shown[0].name
    others = [p for p in shown if p.name != floor]
    (fixed,) = (p for p in shown if p.name == floor) if floor in study.free else (None,)
    if fixed is not None and len(others) >= 2 and len(study.grid.axes[floor]) >= 4:
        yield Drawn(
            "figure_12",
            f"Figure 12. Two values of {floor}, SNR {low:g}",
            f"Left and right: {pair[0]} less {pair[1]} at one true value each, over the "
            f"{others[0].name}-{others[-1].name} plane. Middle: the marginal curves of figure 2.",
            fixed_points(evidence.grids[low], *pair, fixed, others[0], others[-1], f"SNR {low:g}"),
        )


def _ours(evidence: Evidence, shown: list[Parameter]) -> Iterator[Drawn]:
    study, low = evidence.study, evidence.low
    inner = {alpha: names.dial(alpha) for alpha in study.dial if evidence.known(names.dial(alpha))}
    if inner:
        by_alpha = {0.0: names.GT, **inner, 1.0: evidence.fitted}
        trained = {study.hybrid: names.HYBRID} if evidence.known(names.HYBRID) else None
        yield Drawn(
            "dial",
            f"The dial, SNR {low:g} (not in the paper)",
            "Blends of the outputs of two networks, nothing trained in between; beside them the "
            "network that was trained on mixed labels.",
            dial_curves(evidence.grids[low], by_alpha, shown, f"SNR {low:g}", trained),
        )
    chosen = evidence.known(names.GT, names.GT_ABSOLUTE, evidence.fitted, names.MLE_ABSOLUTE)
    if names.GT_ABSOLUTE in chosen:
        yield Drawn(
            "absolute_loss",
            f"The absolute loss, SNR {low:g} (not in the paper)",
            "Networks trained under the mean absolute error beside those of figure 2: section "
            "4.4's future work.",
            performance(evidence.grids[low], chosen, shown, f"SNR {low:g}"),
        )
    variants = [
        name
        for base in (names.GT, evidence.fitted)
        for name in (base, names.wide(base, study.wide), names.deep(base, study.deep))
        if evidence.known(name)
    ]
    if study.wide or study.deep:
        yield Drawn(
            "variants",
            f"Wider and deeper networks, SNR {low:g} (section 3.2)",
            "The networks of figure 2 beside larger ones taught the same.",
            performance(evidence.grids[low], variants, shown, f"SNR {low:g}"),
        )
