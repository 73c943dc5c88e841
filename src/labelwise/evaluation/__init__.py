"""How good estimators are: bias and scatter over a grid, information, bounds, the alpha for a task."""
