"""The trainer: loop, optimizer, evaluation, reports."""
