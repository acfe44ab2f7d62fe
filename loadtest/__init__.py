"""Measurements of a running gateway: how fast, how it fails, how long it holds."""
