"""Networks: labels, training, and estimation with trained networks."""
