"""Where progress goes: console, metrics.jsonl, TensorBoard, W&B, log files."""
