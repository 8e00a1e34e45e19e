"""From vision features to LLM embeddings."""
