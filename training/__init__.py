"""Training of the three models, from public data to a run folder."""
