"""Records and baselines: added to a chain, derived again, ranked and shown."""
