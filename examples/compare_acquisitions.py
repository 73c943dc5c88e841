"""Which b-values measure a tissue best? Ask the Cramér-Rao bound before scanning."""

# %% Three protocols of ten measurements each, b in s/mm²
import numpy as np

import labelwise as lw
from labelwise.evaluation.cramer_rao import cramer_rao

protocols = {
    "many low b": [0, 5, 10, 15, 20, 30, 40, 60, 100, 800],
    "Zhao 2015": [0, 10, 20, 30, 50, 80, 100, 200, 400, 800],
    "few low b": [0, 0, 20, 60, 150, 300, 400, 600, 800, 800],
}

# %% The smallest standard deviation of any unbiased estimator, liver-like tissue, SNR 30
tissue, sigma = np.array([[1.0, 0.25, 1.1, 60.0]]), 1 / 30
print(f"{'protocol':12}" + "".join(f"{p.name:>10}" for p in lw.IVIM.parameters))
for name, b in protocols.items():
    bound = np.asarray(cramer_rao(lw.IVIM(np.array(b) / 1000), lw.Rician(), tissue, sigma))[0]
    print(f"{name:12}" + "".join(f"{value:10.3f}" for value in bound))
