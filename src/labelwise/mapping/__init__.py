"""From a series of images to parameter maps, by a fit or by a network."""
