"""Parts that ViTs and LLMs share: megatron-core layers with attention and norms that run on every device."""
