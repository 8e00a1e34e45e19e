"""What a model is made of: one folder per family, and the registry."""
