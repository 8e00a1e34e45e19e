"""Parts of a component that train or stay: which names a pattern means, gradients and steps under layouts, messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loongforge.components.trainable import matches, trains
from loongforge.config.errors import UserError
from loongforge.config.schema import Config, LoraConfig
from loongforge.model.checks import model_problems
from loongforge.model.flops import num_params, training_factors
from loongforge.parallel.layout import Layout
from loongforge.planning.memory import memory_on
from loongforge.planning.workload import Costs, Workload
from loongforge.training.verify.compare import compare
from tests.parallel.cases import train
from tests.parallel.matrix import Choice
from tests.support.ranks import RankPool
from tests.support.tiny import IMAGE_TOKEN, tiny_config

Pools = Callable[[int], RankPool]
QKV = "decoder.layers.12.self_attention.linear_qkv.weight"


@pytest.mark.parametrize(
    ("pattern", "name", "meant"),
    [
        ("embedding", "embedding.word_embeddings.weight", True),
        ("embed", "embedding.word_embeddings.weight", False),
        ("layers.12", QKV, True),
        ("layers.1", QKV, False),
        ("layers.1*", QKV, True),
        ("linear_qkv", QKV, True),
        ("linear_qkv.bias", QKV, False),
        ("*", QKV, True),
        ("!linear_qkv", QKV, True),
        (QKV, QKV, True),
    ],
)
def test_which_names_a_pattern_means(pattern: str, name: str, meant: bool) -> None:
    assert matches(name, pattern) == meant


def test_the_last_match_decides() -> None:
    llm = tiny_config().model.llm
    llm.freeze, llm.train = True, ["layers.12", "!linear_qkv", "layers.12.self_attention.*.weight"]
    assert trains(QKV, llm)
    assert not trains(QKV.replace("weight", "bias"), llm)
    assert trains("decoder.layers.12.mlp.linear_fc1.weight", llm)
    assert not trains("decoder.layers.1.mlp.linear_fc1.weight", llm)


def _config(llm: list[str], *, freeze: bool = True, vision: list[str] | None = None, **options: Any) -> Config:
    config = tiny_config(num_heads=8, num_kv_heads=4, **options)
    config.model.llm.train, config.model.llm.freeze = llm, freeze
    assert config.model.vision is not None
    config.model.vision.freeze, config.model.vision.train = True, vision or []
    config.trainer.steps = 3
    return config


CASES: dict[str, tuple[Choice, dict[str, Any]]] = {
    "embeddings of a frozen LLM, TP 2": (Choice(2, (("tp", 2),), (("tp", 1),)), dict(llm=["embedding"])),
    "embeddings of a frozen LLM, PP 2": (Choice(2, (("pp", 2),), (("tp", 1),)), dict(llm=["embedding"])),
    "tied embeddings, PP 2": (Choice(2, (("pp", 2),), (("tp", 1),)), dict(llm=["embedding"], tie_embeddings=True)),
    "a layer of the last stage": (Choice(2, (("pp", 2),), (("tp", 1),)), dict(llm=["layers.3"], tie_embeddings=True)),
    "all but embeddings": (
        Choice(4, (("tp", 2), ("pp", 2)), (("tp", 2),)),
        dict(llm=["!embedding", "!layers.0"], freeze=False, tie_embeddings=True),
    ),
    "a layer of the encoder, elsewhere": (
        Choice(4, (("tp", 2), ("ranks", (0, 1))), (("tp", 2), ("ranks", (2, 3)))),
        dict(llm=["embedding", "final_layernorm"], vision=["layers.1", "class_token"]),
    ),
}


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(name: str, distributed: bool, rank_pool: Pools) -> None:
    choice, options = CASES[name]
    reference = rank_pool(1).run(train, _config(**options))[0]
    config = choice.apply(_config(**options, distributed=distributed))
    ranks = rank_pool(choice.world).run(train, config)
    assert not compare(reference, ranks).problems
    patterns = [pattern.removeprefix("!") for pattern in options["llm"]]
    chosen = {name for name in reference.parameters if any(matches(name, pattern) for pattern in patterns)}
    found = {name for name in reference.gradients if name.startswith("llm.")}
    whole = {name for name in reference.parameters if name.startswith("llm.")}
    assert found == ({n for n in chosen if n.startswith("llm.")} if options.get("freeze", True) else whole - chosen)


def test_gradients_are_those_of_a_model_that_trains_whole(rank_pool: Pools) -> None:
    """Freezing takes gradients away; it changes none."""
    whole = _config([], freeze=False, vision=["*"])
    everything = rank_pool(1).run(train, whole)[0].gradients
    some = rank_pool(1).run(train, _config(["embedding", "layers.2.mlp"], vision=["layers.0"]))[0].gradients
    assert 0 < len(some) < len(everything)
    for name, gradient in some.items():
        assert abs(gradient - everything[name]).max() <= 1e-6, name


def test_adapters_and_chosen_weights_train_together(rank_pool: Pools) -> None:
    config = _config(["embedding"], freeze=False)
    config.model.llm.lora = LoraConfig(rank=2)
    names = {name for name in rank_pool(1).run(train, config)[0].gradients if name.startswith("llm.")}
    assert "llm.embedding.word_embeddings.weight" in names
    assert all(".lora." in name for name in names - {"llm.embedding.word_embeddings.weight"})
    assert len(names) > 1


@pytest.mark.parametrize("options", [{}, dict(tie_embeddings=True, qkv_bias=True), dict(qk_norm=True, head_dim=24)])
def test_sizes_by_name_are_those_that_are_built(options: dict[str, Any], groups: Any) -> None:
    from loongforge.components.sharding import global_parameters
    from loongforge.model.assembly import build_model

    config = tiny_config(**options)
    llm: Any = config.model.llm
    built = dict(global_parameters(build_model(config, groups, image_token=IMAGE_TOKEN).llm))
    assert {name: size.numbers for name, size in llm.parameter_sizes().items()} == {
        name: param.numel() for name, param in built.items()
    }
    assert sum(size.numbers for size in llm.parameter_sizes().values()) == num_params(config.model)["llm"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_plan_counts_what_trains(tied: bool) -> None:
    choice = Choice(4, (("tp", 2), ("pp", 2)), (("tp", 1),))
    config = choice.apply(_config(["embedding", "layers.1"], tie_embeddings=tied))
    costs, layout = Costs(config, Workload(16, 0.5)), Layout.from_model(config.model, 4)
    sizes = config.model.llm.parameter_sizes()  # type: ignore[attr-defined]
    embedding = sizes["embedding.word_embeddings.weight"].numbers
    layer = [size for name, size in sizes.items() if ".layers.1." in name]
    on_first = embedding // 2 + sum(size.numbers // (2 if size.divided else 1) for size in layer)
    assert costs.trained_on("llm", layout, 0) == on_first
    assert costs.trained_on("llm", layout, 1) == (embedding // 2 if tied else 0)
    assert costs.trained("llm") == embedding + sum(size.numbers for size in layer)
    first = memory_on(costs, layout, 0)
    assert first.gradients == 4 * (on_first + costs.params_on("projector", layout, 0))
    assert training_factors(config.model) == {"vision": 1, "projector": 3, "llm": 2}


@pytest.mark.parametrize("part", ["vision", "llm"])
def test_a_pattern_that_matches_nothing_is_named(part: str, groups: Any) -> None:
    from loongforge.model.assembly import build_model

    config = _config(["embedding"])
    getattr(config.model, part).train = ["layers.1", "linear_qvk"]
    with pytest.raises(
        UserError, match=rf"model.{part}.train: no parameter's .*'linear_qvk'.*Did you mean 'linear_qkv'"
    ):
        build_model(config, groups, image_token=IMAGE_TOKEN)


def test_a_plan_names_it_too() -> None:
    config = _config(["embeding"])
    found = model_problems(config.model, Layout.from_model(config.model, 1))
    assert any(
        "model.llm.train: no parameter's name has the part 'embeding'. Did you mean 'embedding'" in line
        for line in found
    )


def test_nothing_left_to_train_is_refused() -> None:
    config = _config(["!embedding"])
    assert config.model.projector is not None
    config.model.projector.freeze = True
    assert any(
        "every component is frozen" in line for line in model_problems(config.model, Layout.from_model(config.model, 1))
    )
