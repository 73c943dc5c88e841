"""One identity for models and noise models: nothing is taken for its namesake."""

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import labelwise
from labelwise import ADC, Gaussian, GroundTruth, NoiseModel, Recipe, Rician, TrainingPlan, Uniform
from labelwise.mapping.by_network import model_of
from labelwise.models.find import find_model, rebuild
from labelwise.networks.cache import code_of, imported
from labelwise.networks.network import load
from labelwise.types import InputError, identity

# Not the equation of the built-in ADC, with its name and parameters.
OWN = '''
import jax.numpy as jnp
import labelwise as lw
from jaxtyping import Array, Float

class ADC(lw.SignalModel):
    """S(b) = S0 / (1 + b ADC)."""
    b: Float[Array, "M"] = lw.per_measurement()
    parameters = lw.ADC.parameters

    def signal(self, s0, adc):
        return s0 / (1 + self.b * adc)
'''
B = [0.0, 0.0, 0.1, 0.5, 1.0]
GROUPS = ((0, 1), (2,), (3,), (4,))


class Scaled(NoiseModel):
    """Gaussian noise of another size."""

    factor: float = 1.0
    magnitude = False

    def _gaussian(self, name, *args):
        *first, sigma = args
        return getattr(Gaussian(), name)(*first, self.factor * sigma)

    def sample(self, key, signal, sigma):
        return self._gaussian("sample", key, signal, sigma)

    def log_density(self, signal, data, sigma):
        return self._gaussian("log_density", signal, data, sigma)

    def nll(self, signal, data, sigma):
        return self._gaussian("nll", signal, data, sigma)

    def score_and_curvature(self, signal, data, sigma):
        return self._gaussian("score_and_curvature", signal, data, sigma)

    def signal_of(self, data, sigma):
        return data

    def information(self, signal, sigma):
        return self._gaussian("information", signal, sigma)

    def mean(self, signal, sigma):
        return self._gaussian("mean", signal, sigma)

    def variance(self, signal, sigma):
        return self._gaussian("variance", signal, sigma)


@pytest.fixture
def own(tmp_path):
    """A person's own class of the name of a built-in one, and its file."""
    path = tmp_path / "my_adc.py"
    path.write_text(OWN, encoding="utf-8")
    return find_model(f"{path}:ADC"), path


def lesson(model, noise):
    return TrainingPlan(model, noise, Uniform.typical(model), 0.05, (GroundTruth(),), Recipe.fast())


def test_a_network_of_an_own_class_is_not_taken_for_the_built_in(own, random_network, tmp_path):
    kind, _ = own
    path = tmp_path / "net.safetensors"
    random_network(kind(B), GROUPS).save(path)
    card = load(path).card.model
    with pytest.raises(InputError, match=r"my_adc\.py:ADC, which is not installed; .*--model"):
        model_of(path)
    with pytest.raises(InputError, match="not installed"):
        rebuild(card, None, path)
    with pytest.raises(InputError, match=r"my_adc\.py:ADC, not for labelwise\.models\.adc:ADC"):
        rebuild(card, ADC, path)
    assert type(rebuild(card, kind, path)) is kind


def test_a_network_of_the_built_in_is_not_taken_for_an_own_class(own, random_network, tmp_path):
    path = tmp_path / "net.safetensors"
    random_network(ADC(B), GROUPS).save(path)
    assert model_of(path) == "adc"
    with pytest.raises(InputError, match=r"labelwise\.models\.adc:ADC, not for my_adc\.py:ADC"):
        rebuild(load(path).card.model, own[0], path)


def test_another_equation_in_the_file_is_refused_another_comment_is_not(
    own, random_network, tmp_path
):
    kind, file = own
    path = tmp_path / "net.safetensors"
    random_network(kind(B), GROUPS).save(path)
    card = load(path).card.model
    file.write_text(f"# a comment\n{OWN}", encoding="utf-8")
    rebuild(card, find_model(f"{file}:ADC"), path)
    file.write_text(OWN.replace("(1 + self.b * adc)", "(1 + self.b * adc) ** 2"), encoding="utf-8")
    with pytest.raises(InputError, match="another equation"):
        rebuild(card, find_model(f"{file}:ADC"), path)


def test_files_of_one_name_in_two_folders_keep_their_own_sources(tmp_path):
    sources = []
    kinds = []
    for folder in ("one", "two"):
        path = tmp_path / folder / "my_adc.py"
        path.parent.mkdir()
        path.write_text(f"# {folder}\n{OWN}", encoding="utf-8")
        kinds.append(find_model(f"{path}:ADC"))
    sources = [labelwise.models.find.describe_model(kind(B))["source"] for kind in kinds]
    assert len(set(sources)) == 2


def test_fingerprints_of_an_own_class_and_the_built_in_differ(own):
    kind, _ = own
    assert lesson(kind(B), Rician()).fingerprint != lesson(ADC(B), Rician()).fingerprint


def test_noise_models_of_one_class_with_other_fields_have_other_fingerprints():
    first, same, other = (
        lesson(ADC(B), Scaled(factor=factor)).fingerprint for factor in (2.0, 2.0, 3.0)
    )
    assert first == same != other


def with_noise(network, described):
    """The single network with another noise model in its card."""
    (member,) = network.members
    member = replace(member, card=replace(member.card, noise=described))
    return replace(network, members=(member,))


def test_a_noise_model_of_its_own_is_kept_and_never_becomes_gaussian(random_network, tmp_path):
    path = tmp_path / "net.safetensors"
    network = replace(random_network(ADC(B), GROUPS), noise=Scaled(factor=3.0))
    described = labelwise.noise.describe_noise(network.noise)
    with_noise(network, described).save(path)
    with pytest.raises(InputError, match=r"noise model .*Scaled, which is not part of labelwise"):
        load(path)
    with pytest.raises(InputError, match="not for"):
        load(path, noise=Scaled(factor=2.0))
    again = load(path, noise=Scaled(factor=3.0))
    signal = np.ones((3, 5), np.float32)
    errors = again(signal, 0.1).stats["standard_error"]
    np.testing.assert_array_equal(errors, network(signal, 0.1).stats["standard_error"])
    plain = replace(network, noise=Gaussian())(signal, 0.1).stats["standard_error"]
    np.testing.assert_allclose(errors, 3 * plain, rtol=1e-5)


def test_formulas_of_rician_noise_are_not_those_of_any_magnitude():
    """A guess of the signal is the noise model's own affair."""
    assert Gaussian().signal_of(0.5, 1.0) == 0.5
    assert Rician().signal_of(0.5, 1.0) == 0
    np.testing.assert_allclose(Rician().signal_of(jnp.sqrt(11.0), 1.0), 3.0, rtol=1e-6)
    assert eqx.is_array_like(0.5)
    assert issubclass(Scaled, NoiseModel)


class TestCodeOf:
    @pytest.fixture
    def root(self, tmp_path):
        return shutil.copytree(Path(labelwise.__file__).parent, tmp_path / "labelwise")

    def key(self, root):
        code_of.cache_clear()
        return code_of("labelwise.networks.train", root=root)

    def test_a_file_that_is_imported_changes_the_key(self, root):
        before = self.key(root)
        (root / "fitting" / "extra.py").write_text("FACTOR = 1\n")
        assert self.key(root) == before  # nothing asks for it
        newton = root / "fitting" / "newton.py"
        newton.write_text(f"{newton.read_text()}\nfrom labelwise.fitting.extra import FACTOR\n")
        with_file = self.key(root)
        assert with_file != before
        (root / "fitting" / "extra.py").write_text("FACTOR = 2\n")
        assert self.key(root) != with_file

    def test_what_is_not_imported_changes_nothing(self, root):
        before = self.key(root)
        figures = root / "plots" / "maps.py"
        figures.write_text(f"{figures.read_text()}\n# a comment\n")
        assert self.key(root) == before

    def test_it_holds_every_file_that_a_training_runs_through(self):
        names = imported(
            ["labelwise.networks.train", "labelwise.models"], Path(labelwise.__file__).parent
        )
        needed = (
            *("fitting.newton", "fitting.starts", "networks.mlp", "networks.training"),
            *("networks.plan", "noise", "priors", "simulation", "types"),
        )
        assert {f"labelwise.{name}" for name in needed} <= names.keys()
        assert "labelwise.models.ivim" in names
        assert "labelwise.cli.main" not in names


DATA = Path(__file__).parent / "data"


def test_a_file_of_version_2_gives_the_same_estimates_without_intervals():
    network = load(DATA / "version2_adc.safetensors")
    estimate = network(np.array([[1.0, 0.6, 0.4], [300.0, 200.0, 110.0]]), np.array([0.05, 20.0]))
    values = [[1.0055147409439087, 0.7966932654380798], [296.68292236328125, 0.7121594548225403]]
    errors = [[0.05907341465353966, 0.1416521966457367], [22.583959579467773, 0.1555817723274231]]
    np.testing.assert_allclose(estimate.values, values, rtol=1e-5)
    np.testing.assert_allclose(estimate.stats["standard_error"], errors, rtol=1e-5)
    for alpha in (0.0, 0.5, 1.0):
        assert network.with_alpha(alpha).interval_kinds == {}
        assert set(network([1.0, 0.6, 0.4], 0.05, alpha=alpha).stats) == {
            "standard_error",
            "outside",
        }


class TestVersion1:
    """Files of version 1 named classes only; these two were written by that version."""

    @pytest.mark.parametrize(
        ("name", "values", "errors"),
        [
            ("adc", [20.542552947998047, 0.31571638584136963], [5.16855, 0.1068996]),
            ("own_adc", [1.8285257816314697, 0.6406727433204651], [6.35131, 0.117681]),
        ],
    )
    def test_it_gives_the_same_estimates(self, name, values, errors):
        network = load(DATA / f"version1_{name}.safetensors").with_alpha(0.5)
        estimate = network(np.array([[100.0, 90.0, 60.0, 35.0]]), 5.0)
        np.testing.assert_allclose(estimate.values[0], values, rtol=1e-5)
        np.testing.assert_allclose(estimate.stats["standard_error"][0], errors, rtol=1e-5)

    def test_the_built_in_model_is_known_by_its_source(self):
        assert model_of(DATA / "version1_adc.safetensors") == "adc"

    def test_a_namesake_is_not_taken_for_it(self):
        path = DATA / "version1_own_adc.safetensors"
        with pytest.raises(InputError, match=r"which is not installed; .*FILE\.py:ADC"):
            model_of(path)
        own = find_model(f"{DATA / 'own_adc.py'}:ADC")
        assert type(rebuild(load(path).card.model, own, path)) is own

    def test_a_namesake_is_not_the_built_in_even_when_asked_for(self):
        path = DATA / "version1_own_adc.safetensors"
        with pytest.raises(InputError, match="was trained for the model ADC, not for labelwise"):
            rebuild(load(path).card.model, ADC, path)

    def test_a_file_that_has_changed_since_is_said(self, tmp_path):
        path = DATA / "version1_own_adc.safetensors"
        file = tmp_path / "own_adc.py"
        file.write_text(f"# a comment\n{OWN}", encoding="utf-8")
        with pytest.warns(UserWarning, match="the file of ADC has changed"):
            rebuild(load(path).card.model, find_model(f"{file}:ADC"), path)

    def test_an_unknown_noise_is_refused(self, random_network, tmp_path):
        path = tmp_path / "net.safetensors"
        old = {"class": "Cauchy", "fields": {}, "source": None}
        network = random_network(ADC(B), GROUPS)
        with_noise(network, old).save(path)
        with pytest.raises(InputError, match="noise model Cauchy, which is not part of labelwise"):
            load(path)


def test_a_field_without_a_form_in_json_is_named_by_its_repr():
    said = identity(Scaled(factor=Fraction(1, 3)), NoiseModel)
    assert said["fields"] == {"factor": "Fraction(1, 3)"}
