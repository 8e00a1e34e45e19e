"""Backends: one folder per vendor. Each is found through the entry point group `loongforge.backends`."""
