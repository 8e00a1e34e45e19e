"""Whole models as Hugging Face folders hold them: a module per family, found by `model_type` or by components.

To add one: subclass `base.Family` in a module here, and name it in `FAMILIES`.
"""
