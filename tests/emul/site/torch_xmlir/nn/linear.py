"""torch's own Linear, from where the vendor's would come."""

import torch


class Linear(torch.nn.Linear):
    """Only its address differs."""
