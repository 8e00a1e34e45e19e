"""Small global batches of every shape, for property-based tests."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from loongforge.data.balance import BatchMetadata, CostModel
from tests.data.balance.kinds import LLAVA, QWEN, Image, Sample, metadata

_FREE = CostModel()
_PER_SAMPLE = CostModel(llm_per_sample=1.0, vision_per_unit=2.0)
_images: st.SearchStrategy[Image] = st.tuples(st.integers(1, 6), st.integers(1, 1200), st.integers(0, 2000))
_samples: st.SearchStrategy[Sample] = st.tuples(
    st.one_of(st.integers(0, 300), st.just(100), st.integers(5000, 9000)), st.lists(_images, max_size=3)
)


@dataclass(frozen=True)
class Case:
    """A batch and what it is planned for."""

    batch: BatchMetadata
    ranks: int
    micro_batches: int
    cost: CostModel
    objective: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Zero to forty samples, giants and ties among them, on one to nine ranks."""
    samples = draw(st.lists(_samples, max_size=40))
    if draw(st.booleans()):
        samples = [(text, []) for text, _ in samples]
    return Case(
        metadata(samples),
        ranks=draw(st.integers(1, 9)),
        micro_batches=draw(st.integers(1, 5)),
        cost=draw(st.sampled_from([LLAVA, QWEN, _FREE, _PER_SAMPLE])),
        objective=draw(st.sampled_from(["one_barrier", "lock_step", "pipeline"])),
    )
