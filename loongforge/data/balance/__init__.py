"""Plans of a global batch: which rank and micro-batch each sample goes to, which rank encodes each image; and packing.

numpy in, numpy out; nothing else of loongforge is imported.
"""

from loongforge.data.balance.packing import pack
from loongforge.data.balance.planner import plan
from loongforge.data.balance.times import cell_times, lower_bound, step_time
from loongforge.data.balance.types import BatchMetadata, CostModel, Plan

__all__ = ["BatchMetadata", "CostModel", "Plan", "cell_times", "lower_bound", "pack", "plan", "step_time"]
