"""Tensors from directions against NumPy and dipy, on the same voxels."""

import nibabel as nib
import numpy as np
import pytest

from helpers import DIRECTIONS, shells
from labelwise import DTI, Gaussian, MaximumLikelihood, Status
from labelwise.io.acquisition import read_bvals, read_bvecs
from labelwise.models.evaluate import signals
from labelwise.types import InputError

SHELL = shells(1.0)


def rotated(eigenvalues, seed=0):
    """Elements of a tensor with these eigenvalues along random axes."""
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    d = axes @ np.diag(eigenvalues) @ axes.T
    return d, [d[0, 0], d[1, 1], d[2, 2], d[0, 1], d[0, 2], d[1, 2]]


def gradients(settings):
    from dipy.core.gradients import gradient_table

    g = np.stack([settings[name] for name in ("gx", "gy", "gz")], axis=1)
    return gradient_table(1000 * settings["b"], bvecs=g)


def test_tensor_equation():
    d, elements = rotated([1.7, 0.4, 0.2])
    expected = 100 * np.exp(-np.einsum("im,ij,jm->m", DIRECTIONS, d, DIRECTIONS))
    signal = DTI(**SHELL).signal(100.0, *elements)
    np.testing.assert_allclose(signal[:2], 100.0)
    np.testing.assert_allclose(signal[2:], expected, rtol=1e-5)


@pytest.mark.parametrize("eigenvalues", [[1.7, 0.4, 0.2], [0.8, 0.8, 0.8], [3.0, 2.9, 0.1]])
def test_invariants_do_not_depend_on_the_axes(eigenvalues):
    from dipy.reconst.dti import fractional_anisotropy

    for seed in range(3):
        _, elements = rotated(eigenvalues, seed)
        md, fa, ad, rd = (float(each.function(1.0, *elements)) for each in DTI.derived)
        assert md == pytest.approx(np.mean(eigenvalues), rel=1e-5)
        assert fa == pytest.approx(float(fractional_anisotropy(np.array(eigenvalues))), abs=1e-3)
        assert ad == pytest.approx(max(eigenvalues), rel=1e-5)
        assert rd == pytest.approx(np.mean(sorted(eigenvalues)[:2]), rel=1e-5)


def test_tensor_guess_is_near_without_noise():
    _, elements = rotated([1.7, 0.4, 0.2])
    model = DTI(**SHELL)
    signal = signals(model, np.array([[100.0, *elements]]))[0]
    np.testing.assert_allclose(model.guess(signal), [100.0, *elements], rtol=0.02, atol=0.01)


def test_tensor_fits_like_dipy():
    """Least squares of both on the same noisy voxels: equal to a fiftieth of a standard error."""
    from dipy.reconst.dti import TensorModel

    rng, model = np.random.default_rng(0), DTI(**SHELL)
    params = [[1.0, *rotated(rng.uniform([1, 0.4, 0.2], [2, 0.8, 0.4]), s)[1]] for s in range(40)]
    signal = signals(model, np.array(params)) + rng.normal(0, 0.01, (40, 32))
    ours = MaximumLikelihood(model, Gaussian(), dtype=np.float64)(signal, 0.01)
    theirs = TensorModel(gradients(SHELL), fit_method="NLLS").fit(signal)
    tensor = 1000 * theirs.quadratic_form
    expected = np.stack([tensor[:, i, j] for i, j in zip(*np.triu_indices(3), strict=True)], 1)
    order = [1, 4, 5, 2, 6, 3]  # xx xy xz yy yz zz
    error = ours.stats["standard_error"][:, order]
    assert np.abs((ours.values[:, order] - expected) / error).max() < 0.02
    md, fa = (each.function(*ours.values.T) for each in model.derived[:2])
    np.testing.assert_allclose(md, 1000 * theirs.md, rtol=2e-3)
    np.testing.assert_allclose(fa, theirs.fa, atol=2e-3)


def test_tensor_of_real_voxels_is_dipys():
    """A scan of 64 directions that dipy comes with: 100 voxels of tissue, least squares of both."""
    from dipy.data import get_fnames
    from dipy.reconst.dti import TensorModel

    image, bvals, bvecs = get_fnames(name="small_64D")
    b = read_bvals(bvals)
    settings = {"b": b, **read_bvecs(bvecs, b)}
    data = np.asarray(nib.load(image).dataobj, float).reshape(-1, len(b))
    tissue = data[np.argsort(data[:, b == 0].mean(axis=1))[-100:]]
    ours = MaximumLikelihood(DTI(**settings), Gaussian(), dtype=np.float64)(tissue, 5.0)
    theirs = TensorModel(gradients(settings), fit_method="NLLS").fit(tissue)
    inside = ours.status == Status.CONVERGED
    assert inside.mean() > 0.9
    md, fa = (np.asarray(each.function(*ours.values[inside].T)) for each in DTI.derived[:2])
    np.testing.assert_allclose(md, 1000 * theirs.md[inside], rtol=5e-3)
    np.testing.assert_allclose(fa, theirs.fa[inside], atol=5e-3)


@pytest.mark.parametrize("length", [0.5, 0.0])
def test_directions_must_have_unit_length(length):
    settings = {**SHELL, "gx": np.where(np.arange(32) == 7, 0, SHELL["gx"])}
    for name in ("gx", "gy", "gz"):
        settings[name] = np.where(np.arange(32) == 7, length / np.sqrt(3), SHELL[name])
    with pytest.raises(InputError, match=r"of unit length, got length .* for measurement 8"):
        DTI(**settings)
