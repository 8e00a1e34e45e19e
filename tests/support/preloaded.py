"""What ranks need, imported once by the server that forks them. Nothing here starts a thread or a driver."""

from loongforge.kernels.backend import select

select("cpu").activate()

import megatron.core.models.gpt  # noqa: E402, F401
import transformers.modeling_utils  # noqa: E402, F401

import loongforge.training.trainer  # noqa: E402, F401
