"""A projector that is one more layer of a ViT, a linear map and a norm."""
