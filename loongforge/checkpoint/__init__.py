"""Life cycle of a checkpoint, sharded state, Hugging Face folders."""
