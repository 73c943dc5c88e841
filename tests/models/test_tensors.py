"""Tensors from directions against NumPy and dipy, on the same voxels."""

import jax
import nibabel as nib
import numpy as np
import pytest

from helpers import DIRECTIONS, shells
from labelwise import DKI, DTI, Gaussian, MaximumLikelihood, Status
from labelwise.io.acquisition import read_bvals, read_bvecs
from labelwise.mapping.derived import _evaluate
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


@pytest.mark.parametrize("model", [DTI, DKI])
def test_derived_maps_call_no_lapack(model):
    """Two blocks of voxels in two threads waited for each other in eigenvalues without end."""
    params = np.ones((3, len(model.parameters)))
    program = str(jax.make_jaxpr(lambda p: _evaluate(model.derived, p))(params))
    assert "cos" in program
    assert not any(name in program for name in ("eig", "lu[", "svd", "qr[", "cholesky"))


def test_slope_of_the_largest_eigenvalue_is_that_of_numpys():
    d, elements = rotated([1.7, 0.41, 0.4], 4)
    vector = np.linalg.eigh(d)[1][:, 2]
    with jax.enable_x64(True):
        along = jax.jacfwd(lambda e: DTI.derived[2].function(1.0, *e))(np.array(elements))
    twice = np.array([1, 1, 1, 2, 2, 2])
    i, j = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]
    np.testing.assert_allclose(along, twice * vector[i] * vector[j], atol=1e-6)


def test_the_largest_eigenvalue_of_an_isotropic_tensor_has_finite_slopes():
    along = jax.jacfwd(lambda e: DTI.derived[2].function(1.0, *e))
    for mean in (0.7, 0.0):
        assert np.isfinite(along(np.array([mean, mean, mean, 0, 0, 0], np.float32))).all()


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


def two_compartments(seed):
    """Elements of D and V of two Gaussian compartments with tensors along random axes."""
    first, second = (rotated(values, seed)[0] for values in ([2.0, 0.9, 0.6], [1.2, 0.3, 0.2]))
    share = 0.4
    d = share * first + (1 - share) * second

    def along(i, j, k, m):  # the symmetrised product of the two compartments' deviation
        e = first - second
        return e[i, j] * e[k, m] + e[i, k] * e[j, m] + e[i, m] * e[j, k]

    axes = {"x": 0, "y": 1, "z": 2}
    names = [p.name[1:] for p in DKI.parameters[7:]]
    v = [share * (1 - share) * along(*(axes[letter] for letter in name)) for name in names]
    return [d[0, 0], d[1, 1], d[2, 2], d[0, 1], d[0, 2], d[1, 2], *v]


DKI_SHELLS = shells(1.0, 2.0)
DIPYS_ORDER = [
    *("xxxx", "yyyy", "zzzz", "xxxy", "xxxz", "xyyy", "yyyz", "xzzz", "yzzz"),
    *("xxyy", "xxzz", "yyzz", "xxyz", "xyyz", "xyzz"),
]


def test_kurtosis_tensor_without_kurtosis_is_the_tensor():
    _, elements = rotated([1.7, 0.4, 0.2])
    ours = DKI(**DKI_SHELLS).signal(5.0, *elements, *[0.0] * 15)
    np.testing.assert_allclose(ours, DTI(**DKI_SHELLS).signal(5.0, *elements), rtol=1e-6)


def test_kurtosis_tensor_is_that_of_two_compartments():
    """To second order in b: -log S and the variance of the diffusivities along each direction."""
    elements = two_compartments(3)
    small = {**DKI_SHELLS, "b": DKI_SHELLS["b"] * 0.02}
    first, second = (rotated(values, 3)[0] for values in ([2.0, 0.9, 0.6], [1.2, 0.3, 0.2]))
    g = np.stack([small[name] for name in ("gx", "gy", "gz")])
    d = [np.einsum("im,ij,jm->m", g, each, g) for each in (first, second)]
    exact = 0.4 * np.exp(-small["b"] * d[0]) + 0.6 * np.exp(-small["b"] * d[1])
    ours = signals(DKI(**small), np.array([[1.0, *elements]]))[0]
    np.testing.assert_allclose(ours, exact, atol=3e-6)


@pytest.mark.parametrize("seed", range(4))
def test_kurtosis_is_dipys(seed):
    """dipy fits our noise-free signals: tensors, MK (in closed form there), MKT, MD and FA."""
    from dipy.reconst.dki import DiffusionKurtosisModel

    model, params = DKI(**DKI_SHELLS), [1.0, *two_compartments(seed)]
    signal = signals(model, np.array([params]))[0]
    theirs = DiffusionKurtosisModel(gradients(DKI_SHELLS), fit_method="WLS").fit(signal)
    derived = {each.name: float(each.function(*params)) for each in model.derived}
    names = [p.name[1:] for p in DKI.parameters[7:]]
    v = [params[7 + names.index(name)] for name in DIPYS_ORDER]
    np.testing.assert_allclose(theirs.kt, np.array(v) / derived["MD"] ** 2, atol=1e-4)
    assert 1000 * theirs.md == pytest.approx(derived["MD"], rel=1e-4)
    assert theirs.fa == pytest.approx(derived["FA"], abs=1e-4)
    assert theirs.mk(min_kurtosis=-1, max_kurtosis=10) == pytest.approx(derived["MK"], rel=2e-3)
    mkt = theirs.mkt(min_kurtosis=-1, max_kurtosis=10)
    assert mkt == pytest.approx(derived["MKT"], rel=1e-3)


def test_kurtosis_of_real_voxels_is_dipys():
    """A scan on a grid in q-space that dipy comes with, up to b of 2600 s/mm²."""
    from dipy.data import get_fnames
    from dipy.reconst.dki import DiffusionKurtosisModel

    image, bvals, bvecs = get_fnames(name="small_101D")
    b = read_bvals(bvals)
    low = b < 2.6
    settings = {name: rows[low] for name, rows in {"b": b, **read_bvecs(bvecs, b)}.items()}
    data = np.asarray(nib.load(image).dataobj, float).reshape(-1, len(b))[:, low]
    data = data[data.min(axis=1) > 0]
    tissue = data[np.argsort(data[:, b[low].argmin()])[-150:]]
    model = DKI(**settings)
    ours = MaximumLikelihood(model, Gaussian(), dtype=np.float64, threads=1)(tissue, 10.0)
    theirs = DiffusionKurtosisModel(gradients(settings), fit_method="WLS").fit(tissue)
    inside = ours.status == Status.CONVERGED  # the brightest are liquid, of which some are not
    assert inside.mean() > 0.95
    theirs = {
        "MD": (1000 * theirs.md, 0.01),
        "FA": (theirs.fa, 0.01),
        "MK": (theirs.mk(min_kurtosis=-1, max_kurtosis=10), 0.05),
        "MKT": (theirs.mkt(min_kurtosis=-1, max_kurtosis=10), 0.05),
    }
    for each in model.derived:
        if each.name in theirs:
            expected, close = theirs[each.name]
            found = np.array(jax.vmap(each.function)(*ours.values[inside].T))
            apart = np.abs(found - expected[inside])
            assert np.mean(apart < close) > 0.95, each.name
            assert np.median(apart) < close / 4, each.name


def test_kurtosis_guess_is_near_without_noise():
    model, params = DKI(**DKI_SHELLS), np.array([1.0, *two_compartments(1)])
    guess = np.array([float(x) for x in model.guess(signals(model, params[None])[0])])
    np.testing.assert_allclose(guess[:7], params[:7], atol=0.05)
    np.testing.assert_allclose(guess[7:], params[7:], atol=0.2)
