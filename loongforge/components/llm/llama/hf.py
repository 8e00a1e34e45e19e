"""Names of `LlamaForCausalLM` and its kin in transformers, as their checkpoints have them."""

from __future__ import annotations

from loongforge.components.hf import NameMap, Rule, grouped_qkv, stacked
from loongforge.components.llm.llama.config import LlamaConfig

# Alone; inside LLaVA in memory; inside LLaVA on the hub.
PREFIXES = ("model.", "model.language_model.", "language_model.model.", "language_model.")
HEAD_PREFIXES = ("", "model.language_model.", "language_model.")

GROWING = ("embed_tokens.weight", "lm_head.weight")
CARRIED = (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)  # older transformers saved it


def name_map(config: LlamaConfig) -> NameMap:
    """Rules of the decoder."""
    layer, theirs = "decoder.layers.{i}.", "layers.{i}."
    attention = theirs + "self_attn."
    heads = dict(groups=config.num_kv_heads, per_group=config.num_heads // config.num_kv_heads, head=config.head_size)
    qkv = [
        grouped_qkv(
            f"{layer}self_attention.linear_qkv.{kind}",
            (f"{attention}q_proj.{kind}", f"{attention}k_proj.{kind}", f"{attention}v_proj.{kind}"),
            **heads,
        )
        for kind in ("weight", "bias")
    ]
    rules = [
        Rule("embedding.word_embeddings.weight", ("embed_tokens.weight",)),
        Rule(f"{layer}input_layernorm.weight", (f"{theirs}input_layernorm.weight",)),
        *qkv,
        Rule(f"{layer}self_attention.q_layernorm.weight", (f"{attention}q_norm.weight",)),
        Rule(f"{layer}self_attention.k_layernorm.weight", (f"{attention}k_norm.weight",)),
        Rule(f"{layer}self_attention.linear_proj.weight", (f"{attention}o_proj.weight",)),
        Rule(f"{layer}pre_mlp_layernorm.weight", (f"{theirs}post_attention_layernorm.weight",)),
        stacked(f"{layer}mlp.linear_fc1.weight", (f"{theirs}mlp.gate_proj.weight", f"{theirs}mlp.up_proj.weight")),
        Rule(f"{layer}mlp.linear_fc2.weight", (f"{theirs}mlp.down_proj.weight",)),
        *_expert_rules(f"{layer}mlp.", f"{theirs}mlp."),
        Rule("decoder.final_layernorm.weight", ("norm.weight",)),
    ]
    rules.append(Rule("output_layer.weight", ("lm_head.weight",), prefixes=HEAD_PREFIXES))
    tied = {"lm_head.weight": "embed_tokens.weight"} if config.tie_embeddings else {}
    return NameMap(rules, PREFIXES, carried=CARRIED, tied=tied, growing=GROWING)


def _expert_rules(ours: str, theirs: str) -> list[Rule]:
    """Router and experts of one layer; transformers keeps experts apart on disk, whatever it does in memory."""
    expert, name = f"{ours}experts.{{e}}.", f"{theirs}experts.{{e}}."
    return [
        Rule(f"{ours}gate.weight", (f"{theirs}gate.weight",)),
        stacked(f"{expert}linear_fc1.weight", (f"{name}gate_proj.weight", f"{name}up_proj.weight")),
        Rule(f"{expert}linear_fc2.weight", (f"{name}down_proj.weight",)),
    ]
