"""Projectors with a fixed number of learned queries."""
