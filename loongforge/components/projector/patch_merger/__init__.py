"""The patch merger of Qwen2-VL."""
