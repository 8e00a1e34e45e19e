"""Linear and MLP projectors."""
