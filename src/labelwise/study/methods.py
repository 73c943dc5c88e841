"""The names of a study's estimators, the same in data, tables and figures."""

from __future__ import annotations

from dataclasses import replace

from labelwise.evaluation.methods import Method

_MLE_MEAN = Method("fit", start="mean")
_MLE_TRUTH = Method("fit", start="truth")
_GT = Method("ground truth")
_MLE_RICIAN = Method("maximum likelihood", noise="Rician")
_MLE_GAUSSIAN = Method("maximum likelihood", noise="Gaussian")
_BASES = {method.name: method for method in (_GT, _MLE_RICIAN, _MLE_GAUSSIAN)}

MLE_MEAN, MLE_TRUTH, GT = _MLE_MEAN.name, _MLE_TRUTH.name, _GT.name
MLE_RICIAN, MLE_GAUSSIAN = _MLE_RICIAN.name, _MLE_GAUSSIAN.name
SELF = Method("self-supervised").name
HYBRID = Method("mix").name
GT_ABSOLUTE = replace(_GT, loss="absolute").name
MLE_ABSOLUTE = replace(_MLE_RICIAN, loss="absolute").name


def own_weight(parameter: str) -> str:
    """The network whose loss weighs one parameter far above all others.

    Example:
        >>> own_weight("f")
        'Supervised MLE, weight on f'
    """
    return replace(_MLE_RICIAN, weighed=parameter).name


def blend(alpha: float) -> str:
    """A blend of two networks: 1 is the one trained on MLE labels, 0 the one trained on truth.

    Example:
        >>> blend(0.50)
        'Blend 0.5'
    """
    return Method("blend", alpha=alpha).name


def larger(name: str, wide: int, deep: int) -> list[str]:
    """The networks with more nodes in each layer, and with more layers, than the one of that name.

    Example:
        >>> larger(GT, 150, 10), larger(GT, 0, 10)
        (['Supervised GT, 150 wide', 'Supervised GT, 10 deep'], ['Supervised GT, 10 deep'])
    """
    sizes = {"wide": wide, "deep": deep}
    return [replace(_BASES[name], **{size: n}).name for size, n in sizes.items() if n]
