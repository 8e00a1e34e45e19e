"""Scoring and generation with a trained model."""
