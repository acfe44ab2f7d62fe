"""Readers of the annotations and tiles that the models learn from."""
