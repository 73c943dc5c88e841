"""How good estimators are: bias and scatter over a grid, information, bounds, alpha for a task."""
