"""Samples as the model sees them, for the eye."""
