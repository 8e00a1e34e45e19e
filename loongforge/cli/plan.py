"""`loongforge plan`: would this recipe run, and how large is it. No weights, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from loongforge.cli.parser import Parser
from loongforge.config.schema import Config

_EXAMPLES = """
  loongforge plan +recipe=llava_sft
  loongforge plan +recipe=llava_sft launcher.nproc=4 model.llm.parallel.tp=2 --json
  loongforge plan +recipe=llava_1_5_7b data.train=x data.tokenizer=y launcher.nproc=8 model.llm.parallel.tp=4"""


def run(argv: Sequence[str]) -> int:
    """Checks a recipe and prints its size; returns the exit code."""
    from loongforge.cli import recipe_args
    from loongforge.cli.processes import check_fit, find_processes
    from loongforge.model.checks import micro_batch_size

    parser = Parser("plan", "Checks a recipe without running it: shapes, layout, parameters, FLOPs.", _EXAMPLES)
    recipe_args.add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse(argv)
    config = recipe_args.load_recipe(args).config
    layout = check_fit(config, find_processes(config).size)
    sizes = component_sizes(config)
    report = {
        "recipe": config.name,
        "processes": layout.world_size,
        "layout": {axis: layout.llm.sizes[axis] for axis in ("tp", "dp", "pp")},
        "micro_batch_size": micro_batch_size(config, layout),
        "components": sizes,
        "params": sum(size["params"] for size in sizes.values()),
        "trainable_params": sum(size["trainable_params"] for size in sizes.values()),
    }
    print(json.dumps(report) if args.json else _text(report))
    return 0


def component_sizes(config: Config) -> dict[str, dict[str, Any]]:
    """Type, parameters and forward FLOPs of each component; FLOPs are of one image, for the LLM of one token."""
    from loongforge.components.llm.base import LLMConfig
    from loongforge.components.projector.base import ProjectorConfig
    from loongforge.components.vision.base import VisionConfig

    vision, projector, llm = config.model.vision, config.model.projector, config.model.llm
    assert isinstance(llm, LLMConfig)
    found: dict[str, tuple[Any, int, float, str]] = {}
    if isinstance(vision, VisionConfig) and isinstance(projector, ProjectorConfig):
        ends = {"input_size": vision.output_size, "output_size": llm.hidden_size}
        found["vision"] = (vision, vision.num_params(), vision.flops(), "image")
        flops = projector.flops(vision.num_image_tokens, **ends)
        found["projector"] = (projector, projector.num_params(**ends), flops, "image")
    length = min(config.data.max_length or llm.max_seq_len, llm.max_seq_len)
    found["llm"] = (llm, llm.num_params(), llm.flops(length), "token")
    return {
        name: {
            "type": part.type,
            "params": params,
            "trainable_params": 0 if part.freeze else params,
            "forward_flops": flops,
            "per": per,
        }
        for name, (part, params, flops, per) in found.items()
    }


def _text(report: dict[str, Any]) -> str:
    layout = report["layout"]
    lines = [
        f"{report['recipe']}: {report['processes']} process(es), tp={layout['tp']} dp={layout['dp']} pp={layout['pp']}",
        f"{'component':<12}{'type':<16}{'parameters':>16}{'trainable':>16}  forward FLOPs",
    ]
    for name, size in report["components"].items():
        counts = f"{size['params']:>16,}{size['trainable_params']:>16,}"
        lines.append(f"{name:<12}{size['type']:<16}{counts}  {size['forward_flops']:.3g} per {size['per']}")
    lines.append(f"{'total':<28}{report['params']:>16,}{report['trainable_params']:>16,}")
    return "\n".join(lines)
