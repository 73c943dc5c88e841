"""Studies: everything that the paper shows of an acquisition, from one description.

`description` says what is to be done, `run` does it in stages that are kept, `claims` turns
evaluations into verdicts, `figures` into pictures, and `report` puts it all on one page.
"""
