"""Training: the same bytes when interrupted, lanes that leave each other alone, Adam by hand."""

import jax
import numpy as np
import pytest

from labelwise.networks import training
from labelwise.networks.mlp import Architecture
from labelwise.networks.recipe import Recipe
from labelwise.networks.training import Examples, optimise, supervised

NETWORK = Architecture(inputs=4, outputs=2, width=5)
RECIPE = Recipe.fast(signals=1250, batch=50, epochs=4, restarts=2, warmup=10)
SQUARED = supervised("squared")


def lesson(labels=2, voxels=1250, seed=0):
    """Targets that a small network can learn, with noise of each label's own."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(voxels, 4)).astype(np.float32)
    truth = np.abs(inputs @ rng.normal(size=(4, 2)))
    targets = truth + 0.1 * rng.normal(size=(labels, voxels, 2))
    usable = rng.random((labels, voxels)) < 0.9
    return Examples(inputs, targets.astype(np.float32), usable, np.ones((labels, 2), np.float32))


EXAMPLES = lesson()


def taught(examples=EXAMPLES, recipe=RECIPE, seed=0, network=NETWORK, **settings):
    return optimise(examples, network, SQUARED, recipe, seed, **settings)


def replaced(examples, **changes):
    return Examples(**(vars(examples) | changes))


def content(results):
    return [
        [array.tobytes() for array in jax.tree.leaves(result.weights)] + [result.history.tobytes()]
        for result in results
    ]


@pytest.fixture(scope="module")
def usual():
    return taught()


def losses_by_hand(examples, label, weights, rows, network=NETWORK):
    outputs = np.asarray(network(weights, examples.inputs[rows].T), float).T
    each = np.sum((examples.weights[label] * (outputs - examples.targets[label, rows])) ** 2, 1)
    return each[examples.usable[label, rows]].mean()


# --- the recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signals": 0}, "signals: expected a whole number from 1 to"),
        ({"epochs": 0}, "epochs: expected a whole number from 1 to"),
        ({"restarts": 0}, "restarts: expected a whole number from 1 to"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"rate": float("inf")}, "rate must be positive"),
        ({"validation": 1.0}, "validation"),
        ({"loss": "cubic"}, "known are squared, absolute, huber"),
        ({"schedule": "linear"}, "known are constant, cosine"),
        ({"patience": 0}, "patience: expected a whole number from 1 to"),
        ({"signals": 120}, "96 training voxels do not fill one batch of 100"),
    ],
)
def test_an_impossible_recipe_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Recipe.fast(**changes)


def test_the_paper_s_recipe_is_the_paper_s():
    recipe = Recipe.paper()
    assert (recipe.batch, recipe.restarts, recipe.rate) == (100, 16, 1e-3)
    assert (recipe.training_voxels, recipe.validation_voxels) == (80_000, 20_000)
    assert np.all(recipe.rates() == np.float32(1e-3))


def test_the_cosine_rises_to_its_rate_and_falls_to_nothing():
    rates = RECIPE.rates()
    assert rates.shape == (4, 20)
    rising, falling = rates.ravel()[:10], rates.ravel()[9:]
    np.testing.assert_allclose(rising, 1e-2 * np.arange(1, 11) / 10, rtol=1e-6)
    assert np.all(np.diff(falling) <= 0)
    assert falling.max() == np.float32(1e-2)
    assert falling[-1] < 1e-4


# --- the loss


@pytest.mark.parametrize(
    ("loss", "penalty"),
    [
        ("squared", lambda e: e**2),
        ("absolute", np.abs),
        ("huber", lambda e: np.where(np.abs(e) < 0.1, e**2, 0.1 * (2 * np.abs(e) - 0.1))),
    ],
)
def test_the_loss_is_the_sum_over_weighted_errors(loss, penalty):
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(2, 3, 40)).astype(np.float32) * 0.2
    weights = np.array([1.0, 0.5, 2.0], np.float32)
    expected = penalty(weights[:, None] * (outputs - targets)).sum(axis=0)
    np.testing.assert_allclose(supervised(loss)(outputs, targets, weights), expected, rtol=1e-5)


def test_training_steps_are_those_of_adam():
    """Against NumPy in float64, with slopes by finite differences; one step is the whole set."""
    voxels, split, steps, rate = 50, 40, 6, 0.01
    examples = lesson(labels=1, voxels=voxels)
    network = Architecture(inputs=4, outputs=2, width=3, depth=1)
    changes = {"batch": split, "epochs": steps, "rate": rate, "signals": voxels, "restarts": 1}
    (result,) = taught(examples, Recipe.paper(**changes), network=network)
    assert result.epoch == steps  # or the weights returned are not the last

    shapes = [array.shape for array in jax.tree.leaves(result.weights)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def loss(flat):
        a, b, c, d = (x.reshape(s) for x, s in zip(np.split(flat, ends), shapes, strict=True))
        hidden = a @ examples.inputs[:split].T.astype(float) + b
        outputs = np.abs(c @ np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0))) + d)
        errors = np.sum((outputs.T - examples.targets[0, :split]) ** 2, axis=1)
        return errors[examples.usable[0, :split]].mean()

    initial = network.initial(training._rng(0, 0, 0))
    weights = np.concatenate([array.ravel() for array in jax.tree.leaves(initial)]).astype(float)
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, steps + 1):
        nudges = 1e-6 * np.eye(len(weights))
        slope = np.array([loss(weights + n) - loss(weights - n) for n in nudges]) / 2e-6
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        weights -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    found = np.concatenate([np.ravel(array) for array in jax.tree.leaves(result.weights)])
    np.testing.assert_allclose(found, weights, atol=2e-5)


def test_an_error_that_weighs_more_becomes_smaller():
    narrow = Architecture(inputs=4, outputs=2, width=1, depth=1)  # one node, two things to learn
    targets = np.repeat(4 + EXAMPLES.inputs[None, :, :2], 2, axis=0)
    heavy = np.array([[10, 1], [1, 10]], np.float32)
    examples = replaced(EXAMPLES, weights=heavy, targets=targets)
    recipe = Recipe.fast(signals=1250, batch=50, epochs=20, restarts=1, warmup=10)
    first, second = (
        np.mean((np.asarray(narrow(result.weights, examples.inputs.T)).T - targets[0]) ** 2, axis=0)
        for result in taught(examples, recipe, network=narrow)
    )
    assert first[0] < 0.5 * second[0]
    assert second[1] < 0.5 * first[1]


# --- the same bytes


def test_the_same_seed_gives_the_same_bytes(usual):
    assert content(taught()) == content(usual)
    assert content(taught(seed=1)) != content(usual)


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("recipe", [RECIPE, Recipe.paper(signals=1250, batch=50, epochs=4)])
def test_an_interrupted_training_goes_on_to_the_same_bytes(tmp_path, recipe, epoch):
    checkpoint = tmp_path / "checkpoint"

    def interrupt(done, loss):
        if done == epoch:
            raise KeyboardInterrupt

    recipe = Recipe(**(vars(recipe) | {"restarts": 2}))
    with pytest.raises(KeyboardInterrupt):
        taught(recipe=recipe, checkpoint=checkpoint, progress=interrupt)
    told = []

    def tell(done, loss):
        told.append(done)

    resumed = taught(recipe=recipe, checkpoint=checkpoint, resume=True, progress=tell)
    assert told == list(range(epoch + 1, 5))
    assert content(resumed) == content(taught(recipe=recipe))


def test_an_interruption_between_two_lines_spoils_no_checkpoint(tmp_path, monkeypatch, usual):
    """Once the state of epoch 2 was left behind as that of epoch 1."""

    class Interrupting:
        calls = 0

        def __getattr__(self, name):
            return getattr(np, name)

        def concatenate(self, parts):
            Interrupting.calls += 1
            if Interrupting.calls == 3:  # of two an epoch
                raise KeyboardInterrupt
            return np.concatenate(parts)

    monkeypatch.setattr(training, "np", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        taught(checkpoint=tmp_path / "checkpoint")
    monkeypatch.undo()
    resumed = taught(checkpoint=tmp_path / "checkpoint", resume=True)
    assert content(resumed) == content(usual)


def test_there_is_nothing_to_resume_at_first(tmp_path, usual):
    assert content(taught(checkpoint=tmp_path / "checkpoint", resume=True)) == content(usual)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    taught(checkpoint=checkpoint, fingerprint="this")
    with pytest.raises(ValueError, match="is of another training"):
        taught(checkpoint=checkpoint, resume=True, fingerprint="that")


# --- lanes


def test_a_lane_does_not_depend_on_what_the_others_are_taught(usual):
    other = EXAMPLES.targets.copy()
    other[1] *= 3
    results = taught(replaced(EXAMPLES, targets=other))
    assert content(results)[0] == content(usual)[0]
    assert content(results)[1] != content(usual)[1]


@pytest.mark.parametrize("label", [0, 1])
def test_a_label_alone_gives_the_network_it_gives_among_others(usual, label):
    """To rounding: the compiler may multiply another number of matrices in another order."""
    alone = EXAMPLES
    for name in ("targets", "usable", "weights"):
        alone = replaced(alone, **{name: getattr(alone, name)[[label]]})
    (result,) = taught(alone)
    for a, b in zip(
        jax.tree.leaves(result.weights), jax.tree.leaves(usual[label].weights), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_more_networks_than_fit_one_program_are_trained_too(usual, monkeypatch):
    monkeypatch.setattr(training, "LANES", 2)
    for result, expected in zip(taught(), usual, strict=True):
        np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-4)


def test_what_is_not_usable_may_be_anything(usual):
    targets, inputs = EXAMPLES.targets.copy(), EXAMPLES.inputs.copy()
    garbage = np.resize([np.nan, np.inf, -1e30, 5], targets.shape)
    targets[~EXAMPLES.usable] = garbage[~EXAMPLES.usable]
    nobody = ~EXAMPLES.usable.any(axis=0)
    assert nobody.any()
    inputs[nobody] = [np.nan, np.inf, -1e30, 5]
    results = taught(replaced(EXAMPLES, targets=targets, inputs=inputs))
    assert content(results) == content(usual)


def test_a_lane_that_overflows_stops_with_a_reason_and_stops_no_other(usual):
    targets = EXAMPLES.targets.copy()
    targets[1] = 1e30
    fine, overflown = taught(replaced(EXAMPLES, targets=targets))
    assert overflown.weights is None
    assert np.all(np.isinf(overflown.losses))
    assert all("not finite" in reason for reason in overflown.reasons)
    assert content([fine]) == content(usual[:1])


def test_training_ends_when_every_lane_has_stopped():
    targets = np.full_like(EXAMPLES.targets, 1e30)
    for result in taught(replaced(EXAMPLES, targets=targets)):
        assert len(result.history) == 1


# --- which weights


@pytest.mark.parametrize("label", [0, 1])
def test_the_best_weights_are_kept(usual, label):
    result = usual[label]
    assert result.loss == result.losses.min() == result.history.min()
    assert result.history[result.epoch - 1].min() == np.float32(result.loss)
    held_out = slice(RECIPE.training_voxels, None)
    by_hand = losses_by_hand(EXAMPLES, label, result.weights, held_out)
    assert result.loss == pytest.approx(by_hand, rel=1e-5)


def test_the_best_weights_are_kept_also_when_they_are_not_the_last():
    recipe = Recipe.paper(signals=1250, batch=50, epochs=12, restarts=1, rate=0.3)
    results = taught(recipe=recipe)
    assert any(result.epoch < len(result.history) for result in results)
    for label, result in enumerate(results):
        by_hand = losses_by_hand(EXAMPLES, label, result.weights, slice(1000, None))
        assert result.loss == result.history.min() == pytest.approx(by_hand, rel=1e-5)


def test_patience_stops_what_makes_no_progress():
    stuck = Recipe.paper(signals=1250, batch=50, epochs=9, restarts=2, patience=3, rate=1e-30)
    for result in taught(recipe=stuck):
        assert result.epoch == 1
        assert len(result.history) == 4
        assert all("no smaller validation loss after epoch 1" in r for r in result.reasons)


def test_training_begins_with_the_weights_it_is_given():
    start = NETWORK.initial(np.random.default_rng(5))
    still = Recipe.paper(signals=1250, batch=50, epochs=1, rate=1e-30)
    for result in taught(recipe=still, start=start):
        assert result.losses.shape == (1,)
        jax.tree.map(np.testing.assert_array_equal, result.weights, start)


def test_all_labels_begin_with_the_same_weights():
    still = Recipe.paper(signals=1250, batch=50, epochs=1, restarts=2, rate=1e-30)
    same = replaced(
        EXAMPLES,
        targets=EXAMPLES.targets[[0, 0]],
        usable=EXAMPLES.usable[[0, 0]],
    )
    first, second = taught(same, still)
    assert content([first]) == content([second])
    assert first.losses[0] != first.losses[1]


def test_progress_is_told_after_each_epoch(usual):
    told: list[tuple[int, float]] = []
    taught(progress=lambda done, loss: told.append((done, loss)))
    history = np.concatenate([result.history for result in usual], axis=1)
    assert told == list(enumerate(history.min(axis=1).tolist(), start=1))


def test_too_few_voxels_for_a_batch_are_refused():
    recipe = Recipe.fast(signals=200, batch=100, epochs=1)
    with pytest.raises(ValueError, match="leave 60 for training, less than one batch"):
        taught(lesson(voxels=100), recipe)
