"""LLaVA-NeXT's projector: the tiles of an image joined without their padding, a learned row at the end of each line."""
