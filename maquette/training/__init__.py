"""From objects to the weights of the embedded priors."""
