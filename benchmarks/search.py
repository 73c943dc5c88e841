"""The share of voxels whose search ends within 1e-3 of the best known likelihood, by model.

    python benchmarks/search.py [VOXELS]    # about 10 minutes on 2 cores with 1000

The best known likelihood is that of 48 random starts and the truth in float64, or of the search.
"""

import sys

import jax
import numpy as np

import labelwise as lw
from labelwise.simulation import simulate

MODELS = [
    lw.IVIM(np.array([0, 10, 20, 30, 50, 80, 100, 200, 400, 800]) / 1000),
    lw.ADC([0, 0.1, 0.4, 0.8]),
    lw.T2(np.arange(10, 170, 10.0)),
    lw.T2Biexponential(np.arange(8, 328, 8.0)),
    lw.T1InversionRecovery([25, 75, 150, 300, 600, 1200, 2400, 4000]),
    lw.Kurtosis(np.array([0, 0, 300, 700, 1000, 1500, 2000, 2500]) / 1000),
    lw.T2EPG(np.arange(1, 17) * 10.0),
]


def random_starts(parameters, voxels, rng, count=48):
    columns = []
    for parameter in parameters:
        lower, upper = parameter.bounds
        low, high = (0.5, 3.0) if np.isinf(upper) else (lower, upper)
        if low > 0 and high > 20 * low:
            columns.append(np.exp(rng.uniform(np.log(low), np.log(high), (voxels, count))))
        else:
            columns.append(rng.uniform(low, high, (voxels, count)))
    return np.stack(columns, axis=-1)


def main():
    voxels = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rng = np.random.default_rng(0)
    for model in MODELS:
        for noise in (lw.Rician(), lw.Gaussian()):
            for snr in (15, 30, 100):
                key = jax.random.key(snr)
                data = simulate(model, noise, lw.Uniform.typical(model), 1 / snr, voxels, key)
                double = lw.MaximumLikelihood(model, noise, dtype=np.float64)
                starts = random_starts(model.parameters, voxels, rng)
                starts = np.concatenate([starts, data.params[:, None]], axis=1)
                best = double(data.signal, 1 / snr, start=starts).stats["nll"]
                found = lw.MaximumLikelihood(model, noise)(data.signal, 1 / snr)
                nll = np.nan_to_num(found.stats["nll"], nan=np.inf)
                close = nll <= np.fmin(best, nll) + 1e-3
                name = f"{type(model).__name__}, {type(noise).__name__}, SNR {snr}"
                print(f"{name:<45} {np.mean(close):7.2%}", flush=True)


if __name__ == "__main__":
    main()
