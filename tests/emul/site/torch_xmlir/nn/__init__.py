"""Fused layers, emulated."""
