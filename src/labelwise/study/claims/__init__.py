"""The claims of sections 4.1 to 4.5 of the paper, and ours, as comparisons of numbers.

One file for each section; a claim is a function in it and a line in its `QUESTIONS`.

Source: Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
"""

from labelwise.study.claims import advantages, averages, beyond, comparison, vivo
from labelwise.study.claims.asking import Question

QUESTIONS: tuple[Question, ...] = (
    *comparison.QUESTIONS,
    *vivo.QUESTIONS,
    *advantages.QUESTIONS,
    *averages.QUESTIONS,
    *beyond.QUESTIONS,
)
"""Every claim, in the order of the paper."""
