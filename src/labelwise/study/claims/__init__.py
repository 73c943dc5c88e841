"""The claims of sections 4.1 to 4.5 of the paper, and ours, as comparisons of numbers.

One file for each section; a claim is a function in it and a line in its `CLAIMS`.

Source: Epstein et al. 2024, doi:10.59275/j.melba.2024-geb5.
"""

from labelwise.study.claims import beyond_the_paper as beyond
from labelwise.study.claims import section_4_1 as comparison
from labelwise.study.claims import section_4_2 as vivo
from labelwise.study.claims import section_4_3 as advantages
from labelwise.study.claims import section_4_4 as averages
from labelwise.study.claims.judging import ClaimDefinition

CLAIMS: tuple[ClaimDefinition, ...] = (
    *comparison.CLAIMS,
    *vivo.CLAIMS,
    *advantages.CLAIMS,
    *averages.CLAIMS,
    *beyond.CLAIMS,
)
"""Every claim, in the order of the paper."""
