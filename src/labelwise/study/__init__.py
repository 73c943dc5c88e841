"""Studies: everything that the paper shows of an acquisition, from one description.

`config` describes a study, `run` runs it in stages whose results are kept, `claims` derives
verdicts from evaluations, `plots` makes the figures, and `report` writes the page.
"""
