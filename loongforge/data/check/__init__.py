"""Reads all data that a run would read, and says what is wrong with it before the run does."""
