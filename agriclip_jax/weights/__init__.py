"""Weights that others trained, read from their files."""
