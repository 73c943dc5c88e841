"""Networks: what they are taught, how they are trained, and networks in use."""
