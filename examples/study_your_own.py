# %% [markdown]
# # The paper's study, of a model of your own
#
# `labelwise study run my.toml OUT` does for any model what the paper did for IVIM. A study is a few
# lines of TOML; what they leave out is as in the paper (`labelwise study paper --toml all.toml`
# writes them all). Here: T2 from four echoes, and the same decay as a black box in NumPy, which
# cannot be differentiated, so that there is no self-supervised network, and all others are trained.

# %%
import tempfile
from pathlib import Path

from labelwise.study.config import read_study
from labelwise.study.run import run_study

T2 = """
title = "T2 from four echoes"
model = "{model}"
snr = [20, 50]

[acquisition]
te = [10, 25, 50, 100]      # ms

[prior]
S0 = [0.8, 1.2]
T2 = [20, 120]              # ms

[training]
recipe = "fast"
signals = {signals}
epochs = 8
restarts = 2
trainings = 2

[grid]
points = 6
repeats = {repeats}
"""

BLACK_BOX = '''
import numpy as np
import labelwise as lw


class Echoes(lw.SignalModel):
    """S0 exp(-te / T2), by somebody's simulator."""

    te: object = lw.per_measurement()
    differentiable = False
    vectorized = True
    parameters = (
        lw.Parameter("S0", "a.u.", (0.0, 1e4), "S_0"),
        lw.Parameter("T2", "ms", (1.0, 500.0), "T_2"),
    )

    def signal(self, s0, t2):
        return s0 * np.exp(-np.asarray(self.te) / t2)
'''


# %%
def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "echoes.py").write_text(BLACK_BOX)
        kinds = {
            "T2": T2.format(model="t2", signals=8000, repeats=60),
            "black box": T2.format(model="echoes.py:Echoes", signals=1000, repeats=10),
        }
        for name, text in kinds.items():
            (place / "study.toml").write_text(text)
            study = read_study(place / "study.toml")
            found = run_study(study, place / name)
            print(f"\n{name}: trained on {', '.join(study.labels)}; {found.seconds:.0f} s")
            for claim in found.claims:
                print(f"  {claim.verdict:<14} {claim.statement}")
            assert (place / name / "report.html").stat().st_size > 100_000


if __name__ == "__main__":
    main()
