# %% [markdown]
# A network for your acquisition: simulate, label, train, blend, evaluate.

# %%
import jax
import numpy as np

import labelwise as lw
from labelwise.evaluation.grid import evaluate, summary
from labelwise.networks.train import train_networks

model = lw.IVIM(np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000)  # ms/µm²
noise, prior = lw.Rician(), lw.Uniform.typical(model, f=(0.05, 0.5))

# %% One network trained on maximum-likelihood estimates, one on the ground truth, for SNR 10 to
# 40. Ten times smaller than what `labelwise map` trains, to be quick.
labels = (lw.MLE(model, noise), lw.GroundTruth())
recipe = lw.Recipe.every_level(signals=40_000, epochs=20)
plan = lw.TrainingPlan(model, noise, prior, (1 / 40, 1 / 10), labels, recipe, on_bound="keep")
mle, gt = train_networks(plan)
print(f"validation loss: {mle.card.validation['loss']:.3f} against its labels")

# %% A blend of both: no training, any mixture, for each parameter by itself.
blend = lw.blend(mle, gt, alpha={"f": 1.0, "D_slow": 1.0, "D_fast": 0.3})
blend.save("blend.safetensors")
assert lw.load("blend.safetensors").alphas == blend.alphas

# %% Bias, scatter and information over a grid of true parameters, beside the fit itself.
mle_fit = lw.MaximumLikelihood(model, noise)
estimators = {"alpha 1": mle, "blend": blend, "alpha 0": gt, "MLE": mle_fit}
grid = lw.Grid.over(prior, points=5, fixed={"S0": 1.0})
found = summary(evaluate(estimators, model, noise, 1 / 20, grid, 50, jax.random.key(0)))
print(found[["abs_bias", "std", "rmse", "slope"]].sel(parameter="D_fast").to_dataframe().round(2))
