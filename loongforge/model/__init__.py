"""Assembly: encode, project, merge, LLM, loss."""
