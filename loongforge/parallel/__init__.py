"""Which rank holds what, process groups, joining the world."""
