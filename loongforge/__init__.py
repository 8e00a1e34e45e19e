"""loongforge: a config-driven, modular, multimodal training engine on megatron-core."""

__version__ = "0.1.0"
