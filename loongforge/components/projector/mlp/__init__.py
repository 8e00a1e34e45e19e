"""Linear and two-layer MLP projectors."""
