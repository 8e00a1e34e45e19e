"""Packs a data set once, into shards of rows that training reads as they are."""
