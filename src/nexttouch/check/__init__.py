"""The checker: every interleaving of a model's threads, the shortest one that breaks a promise, and what it costs."""
