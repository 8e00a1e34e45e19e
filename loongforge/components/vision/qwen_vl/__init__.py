"""Vision encoders of Qwen2-VL and Qwen2.5-VL: images of any size, positions by rotation in two dimensions."""
