"""Every family against transformers, imported under every layout.

Logits within 1e-4, loss within 1e-5, the gradient of every parameter within 1e-3 (relative, the worst), greedy tokens
equal, weights bit-identical after import; five steps of AdamW: losses and weights within 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loongforge.checkpoint.families.registry import family_of
from loongforge.checkpoint.hf_folder import HFFolder
from loongforge.components.base import FamilyConfig
from loongforge.config.schema import Config, DataConfig, ModelConfig, OptimizerConfig, TrainerConfig
from loongforge.data.batch import Batch
from loongforge.model.flops import image_tokens
from loongforge.training.verify.synthetic import IMAGE_TOKEN, SyntheticData
from tests.hf.cases import CASES, Case
from tests.hf.folders import tensors_of
from tests.hf.layouts import LAYOUTS, NEEDS_VISION, SOME, apply
from tests.hf.ours import Ours, compare_run
from tests.hf.reference import BETAS, CLIP, EPS, LR, WEIGHT_DECAY, Reference, greedy_tokens, run_reference

STEPS, NEW_TOKENS = 5, 6


@dataclass
class Known:
    """The reference of one case."""

    folder: Path
    config: Config
    reference: Reference
    prompt: tuple[list[int], np.ndarray]
    tokens: list[int]
    margins: list[float]


def recipe(folder: Path) -> Config:
    """What `from-hf` makes of a folder, with a training run."""
    hf = HFFolder(folder).config
    family = family_of(hf, folder)
    model = ModelConfig(**family.components(hf, folder), init_from=str(folder))
    optimizer = OptimizerConfig(
        lr=LR, weight_decay=WEIGHT_DECAY, betas=list(BETAS), eps=EPS, clip_grad=CLIP, schedule="constant"
    )
    trainer = TrainerConfig(steps=STEPS, global_batch_size=8, micro_batch_size=2)
    return Config(
        name="parity",
        model=model,
        data=DataConfig(train="none", tokenizer="none"),
        optimizer=optimizer,
        trainer=trainer,
    )


def synthetic(config: Config) -> SyntheticData:
    vision, llm = config.model.vision, config.model.llm
    return SyntheticData(
        samples=config.trainer.global_batch_size,
        vocab_size=llm.vocab_size,  # type: ignore[attr-defined]
        image_size=getattr(vision, "image_size", 0),
        tokens_per_image=image_tokens(config.model),
    )


def one_prompt(whole: Batch) -> Batch:
    """The first sample without its padding and its last tokens, with its images."""
    length = int(whole.lengths[0]) - 4
    tokens = whole.tokens[:1, :length]
    count = int((tokens == IMAGE_TOKEN).sum()) // 4
    return Batch(tokens, torch.full_like(tokens, -100), whole.images[:count], whole.lengths[:1], whole.ids[:1])


@pytest.fixture(scope="module")
def known(tmp_path_factory: Any) -> Any:
    made: dict[tuple[str, int], Known] = {}

    def get(name: str, seed: int = 0) -> Known:
        if (name, seed) not in made:
            made[name, seed] = _reference(CASES[name], seed, tmp_path_factory.mktemp("hf"))
        return made[name, seed]

    return get


def _reference(case: Case, seed: int, folder: Path) -> Known:
    model = case.model(seed)
    model.save_pretrained(folder)
    config = recipe(folder)
    data = synthetic(config)
    batches = [data.global_batch(step, 1) for step in range(STEPS)]
    prompt = one_prompt(batches[0])
    tokens, margins = greedy_tokens(model, case, prompt, NEW_TOKENS)
    reference = run_reference(model, case, batches)
    trained = folder.with_name(f"{folder.name}_trained")
    model.save_pretrained(trained)
    reference.saved = tensors_of(trained)
    return Known(folder, config, reference, (prompt.tokens[0].tolist(), prompt.images.numpy()), tokens, margins)


def run_ours(known: Known, layout: str, pools: Any, folder: Path, swap: bool = False) -> list[Ours]:
    config = apply(recipe(known.folder), layout)
    pool = pools(LAYOUTS[layout][0])
    return pool.run(compare_run, config, known.prompt, NEW_TOKENS, folder, swap, timeout=240)


def exported(known: Known, checkpoint: Path, origin: Path) -> dict[str, torch.Tensor]:
    """What `loongforge export` writes."""
    from loongforge.checkpoint.hf_export import CheckpointWeights
    from loongforge.checkpoint.hf_origin import read_origin
    from loongforge.checkpoint.tensor_table import StoredTensors
    from loongforge.inference.export import write_export
    from loongforge.model.assembly import component_configs

    stored, out = StoredTensors(checkpoint), checkpoint.with_name(f"{checkpoint.name}_hf")
    weights = {name: CheckpointWeights(stored, name) for name in component_configs(known.config)}
    write_export(known.config, weights, read_origin(origin), checkpoint, out, dtype=None, max_bytes=10**5)
    return tensors_of(out)


def by_their_names(known: Known, ranks: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Tensors of all ranks under the names of `state_dict`, which is one of the spellings that are read."""
    family = family_of(HFFolder(known.folder).config, known.folder)
    found: dict[str, torch.Tensor] = {}
    for name in ("vision", "projector", "llm"):
        part = getattr(known.config.model, name)
        if not isinstance(part, FamilyConfig):
            continue
        names = family.name_map(name, part)
        for rank in ranks:
            for key, value in rank.items():
                if key.startswith(f"{name}."):
                    own = key.removeprefix(f"{name}.")
                    parts = names.to_hf({own: torch.from_numpy(value)})
                    for tensor, spellings in zip(parts.values(), names.sources(own), strict=True):
                        theirs = next(s for s in spellings if s in known.reference.weights)
                        found[theirs] = tensor
    return found


def problems(known: Known, ranks: list[Ours]) -> list[str]:
    """Everything that differs by more than it may."""
    reference, found = known.reference, []
    logits = {name: value for rank in ranks for name, value in rank.logits.items()}
    for number, expected in enumerate(reference.logits):
        error = np.abs(logits[str(number)] - expected.numpy()).max()
        found += [f"logits of sample {number}: {error:.1e}"] if error > 1e-4 else []
    trained = ranks[0].trained
    assert trained is not None
    pairs = list(zip(trained.losses, reference.losses, strict=True))
    found += [f"first loss: {pairs[0]}"] if abs(pairs[0][0] - pairs[0][1]) > 1e-5 else []
    found += [f"losses: {pairs}"] if any(abs(a - b) > 1e-4 for a, b in pairs) else []
    gradients = by_their_names(known, [rank.trained.gradients for rank in ranks if rank.trained])
    found += [f"gradient of {n}: never compared" for n in reference.gradients if n not in gradients]
    total = torch.stack([gradient.norm() for gradient in reference.gradients.values()]).norm()
    for name, expected in reference.gradients.items():
        if name in gradients:
            difference = (gradients[name].view_as(expected) - expected).norm()
            error = float(difference / max(expected.norm(), 1e-4 * total))
            found += [f"gradient of {name}: {error:.1e}"] if error > 1e-3 else []
    certain = next((i for i, margin in enumerate(known.margins) if margin < 1e-3), NEW_TOKENS)
    if ranks[0].tokens[:certain] != known.tokens[:certain]:
        found.append(f"greedy tokens {ranks[0].tokens} instead of {known.tokens}")
    return found


def _layouts(name: str) -> list[str]:
    def fits(layout: str) -> bool:
        if layout in SOME:
            return layout in CASES[name].layouts
        return "llava" in name or layout not in NEEDS_VISION

    return [layout for layout in LAYOUTS if fits(layout)]


def _pairs(*, every: bool) -> list[tuple[str, str]]:
    """Every family under each layout; or under one process and one more, in turn."""
    if every:
        return [(name, layout) for layout in LAYOUTS for name in CASES if layout in _layouts(name)]
    pairs = [(name, "one process") for name in CASES]
    for number, name in enumerate(CASES):
        others = _layouts(name)[1:]
        pairs.append((name, others[number % len(others)]))
    return pairs


def _check(name: str, layout: str, known: Any, pools: Any, folder: Path) -> None:
    case = known(name)
    assert not problems(case, run_ours(case, layout, pools, folder))
    given, origin = tensors_of(case.folder), folder / "imported" / "hf"
    copy, trained = exported(case, folder / "imported", origin), exported(case, folder / "trained", origin)
    assert set(copy) == set(trained) == set(given)
    assert [n for n, tensor in given.items() if not torch.equal(copy[n], tensor)] == []
    expected = case.reference.saved
    assert {n: e for n in given if (e := float((trained[n] - expected[n]).abs().max())) > 1e-4} == {}


@pytest.mark.parametrize(("name", "layout"), _pairs(every=False))
def test_family_equals_transformers(name: str, layout: str, known: Any, rank_pool: Any, tmp_path: Path) -> None:
    _check(name, layout, known, rank_pool, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout"), _pairs(every=True))
def test_family_under_every_layout(name: str, layout: str, known: Any, rank_pool: Any, tmp_path: Path) -> None:
    _check(name, layout, known, rank_pool, tmp_path)


def test_a_permuted_weight_is_seen(known: Any, rank_pool: Any, tmp_path: Path) -> None:
    case = known("llama")
    found = problems(case, run_ours(case, "one process", rank_pool, tmp_path, swap=True))
    assert any(line.startswith("logits") for line in found)
    assert any(line.startswith("gradient") for line in found)
