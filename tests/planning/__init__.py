"""Tests of loongforge.planning."""
