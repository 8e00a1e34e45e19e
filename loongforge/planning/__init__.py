"""What a recipe costs under a layout, predicted before anything runs. No torch, but for measuring this machine."""
