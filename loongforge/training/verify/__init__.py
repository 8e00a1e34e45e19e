"""Proof of a recipe's layout on this machine: a small copy of its model trains under it as one process does."""
