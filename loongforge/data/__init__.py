"""From files to batches: sources, chat template and label mask, images, order, loaders.

`build_processor` + `TrainLoader` / `EvalLoader` are what training uses; import them from their modules.
"""
