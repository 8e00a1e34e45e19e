"""CLIP- and SigLIP-type vision transformers."""
