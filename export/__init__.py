"""From a checkpoint to verified model versions in the repository."""
