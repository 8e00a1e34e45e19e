"""Import and export of Hugging Face folders."""
