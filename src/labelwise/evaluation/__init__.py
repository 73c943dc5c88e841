"""Evaluation of estimators: bias and std over a grid, information, Cramér-Rao bound, tuning."""
