"""A vocabulary that is larger than the checkpoint's: old rows stay, new ones are their mean, under any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.cli.main import main
from tests.hf.folders import make_folder, tensors_of

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("name", ["llama", "llama tied"])
def test_new_rows_are_the_mean_of_the_old(name: str, tmp_path: Path, capsys: Any) -> None:
    make_folder(tmp_path / "given", name)
    out = tmp_path / "out"
    assert main(["export", "--checkpoint", str(tmp_path / "given"), "--out", str(out), "model.llm.vocab_size=132"]) == 0
    given, found = tensors_of(tmp_path / "given"), tensors_of(out)
    for table in set(TABLES) & set(given):
        assert torch.equal(found[table][:128], given[table])
        mean = given[table].double().mean(0).float()
        assert torch.allclose(found[table][128:], mean.expand(4, -1), atol=1e-7)
    assert all(torch.equal(found[n], tensor) for n, tensor in given.items() if n not in TABLES)
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 132


@pytest.mark.parametrize("tp", [2, 4])
def test_shards_of_a_grown_table(tp: int, tmp_path: Path) -> None:
    """Ranks whose rows are all old, all new, or both."""
    from loongforge.kernels.backend import select

    select("cpu").activate()
    from loongforge.checkpoint.hf_folder import HFFolder
    from loongforge.checkpoint.hf_source import HFSource
    from loongforge.components.llm.llama.config import LlamaConfig
    from loongforge.components.sharding import Shard

    make_folder(tmp_path, "llama")
    folder = HFFolder(tmp_path)
    names = LlamaConfig.from_hf(folder.config).name_map()
    rows, parts = 256, []
    for rank in range(tp):
        param = torch.nn.Parameter(torch.empty(rows // tp, 64))
        param.tensor_model_parallel, param.partition_dim = True, 0
        shard = Shard("embedding.word_embeddings.weight", param, (rows, 64), rank, tp, False)
        source = HFSource(folder, names, "llm")
        assert source.check([shard]).grown == {TABLES[0]: (128, rows)}
        list(source.fill([shard]))
        parts.append(param.detach())
    whole, given = torch.cat(parts), tensors_of(tmp_path)[TABLES[0]]
    assert torch.equal(whole[:128], given)
    assert torch.allclose(whole[128:], given.mean(0).expand(128, -1), atol=1e-6)
