"""Fit simulated IVIM signals in Python and see how far the estimates can be trusted."""

# %% An acquisition and a noise level: b in ms/µm² (1 ms/µm² is 1000 s/mm²), SNR = S0 / sigma = 30
import jax
import numpy as np

import labelwise as lw
from labelwise.evaluation.cramer_rao import cramer_rao

model = lw.IVIM([0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8])
noise, sigma = lw.Rician(), 1 / 30

# %% A thousand measurements of one tissue
tissue = np.array([1.0, 0.25, 1.1, 45.0])
clean = np.tile(np.asarray(model.signal(*tissue)), (1000, 1))
signal = np.asarray(noise.sample(jax.random.key(0), clean, sigma))

# %% Fit: no start is given, none is needed
estimate = lw.MaximumLikelihood(model, noise)(signal, sigma)

# %% What became of the voxels, and how the estimates scatter beside the smallest scatter possible
for status in lw.Status:
    count = int(np.sum(estimate.status == status))
    if count:
        print(f"{count:4d} voxels {status.reason}")

bound = np.asarray(cramer_rao(model, noise, tissue[None], sigma))[0]
quartiles = np.nanpercentile(estimate.values, [25, 50, 75], axis=0)
print(f"{'':8}{'truth':>9}{'median':>9}{'robust std':>12}{'Cramér-Rao':>12}")
for i, parameter in enumerate(model.parameters):
    spread = (quartiles[2, i] - quartiles[0, i]) / 1.349
    print(
        f"{parameter.name:8}{tissue[i]:9.3f}{quartiles[1, i]:9.3f}{spread:12.3f}{bound[i]:12.3f}"
        f"  {parameter.unit}"
    )
