"""The schema of a recipe: one dataclass per section, read by the strict validator.

A field without a default must be given. Component sections (`model.vision`, `model.projector`,
`model.llm`) are subclasses of `ComponentConfig`; the registry finds the subclass by `type`.
Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from loongforge.config.kernels import KernelsConfig
from loongforge.config.launch_schema import ClusterConfig, LauncherConfig
from loongforge.config.parallel import ParallelConfig
from loongforge.config.profile_schema import ProfileConfig

SCHEMA_VERSION = 1

SHORTHANDS = {"vision": "model.vision", "projector": "model.projector", "llm": "model.llm"}
"""Config groups of components, and where their choice goes: `llm=qwen3_tiny` fills `model.llm`."""


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters of a component's linear layers (LoRA, arXiv 2106.09685)."""

    rank: int = 8
    """Inner width of an adapter."""
    alpha: float = 16.0
    """An adapter's output is scaled by `alpha / rank`."""
    dropout: float = 0.0
    """Part of an adapter's input that is left out at random in training. Above 0, layouts draw different features."""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Ends of the layers' names in Hugging Face's models (`q_proj`, `layers.0.mlp.up_proj`, `layers.*.self_attn.*`,
    `experts.*.down_proj`), or `all-linear`: every linear layer but the output layer."""
    lr_scale: float = 1.0
    """Multiplies `optimizer.lr` for the adapters, in place of the component's."""


@dataclass(kw_only=True)
class ComponentConfig:
    """What every component of a model has; families add their sizes."""

    type: str
    """Registered name, e.g. `clip_vit` (`loongforge components list`)."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    freeze: bool = False
    """Keep the weights as they are: no gradient, no optimizer state."""
    train: list[str] = field(default_factory=list)
    """Exceptions from `freeze`, by parts of parameter names: `[embedding]` trains the embedding of a frozen LLM,
    `["!layers.0"]` freezes a layer of a component that trains. `*` is anything; the last match decides."""
    lr_scale: float = 1.0
    """Multiplies `optimizer.lr` for this component."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Parameter and compute type; null: `trainer.precision`."""
    init_from: str | None = None
    """Folder in Hugging Face format, or a loongforge run or checkpoint, to take the weights from."""
    init_std: float = 0.02
    """Standard deviation of freshly drawn weight matrices."""
    lora: LoraConfig | None = None
    """Low-rank adapters: they train, the component's own weights stay as they are but for those in `train`."""

    @property
    def trains(self) -> bool:
        """Whether any of its parameters takes a gradient."""
        return self.trains_whole or self.lora is not None or any(not name.startswith("!") for name in self.train)

    @property
    def trains_whole(self) -> bool:
        """Whether its own parameters take gradients, but for exceptions."""
        return not self.freeze and self.lora is None


@dataclass(kw_only=True)
class ModelConfig:
    """The composed model. A text-only model has neither vision nor projector."""

    vision: ComponentConfig | None = None
    projector: ComponentConfig | None = None
    llm: ComponentConfig
    init_from: str | None = None
    """Folder of a whole model in Hugging Face format, or a loongforge run or checkpoint, to take all weights from; a
    component's own `init_from` comes after it."""


@dataclass(kw_only=True)
class SourceConfig:
    """One of several data sources."""

    path: str
    """File, folder, or brace/glob pattern of shards."""
    weight: float = 1.0
    """Share of the samples drawn from this source, relative to the others; exact over whole rounds."""
    repeat: float | None = None
    """In place of weights, for all sources or none: how often this one is gone through while one with 1 is, once."""


@dataclass(kw_only=True)
class DataConfig:
    """Where samples come from and how they become tokens."""

    builtin: str | None = None
    """Name of an embedded data set, built at `dir` on first use (`digits_vqa`, `pydoc_text`)."""
    dir: str | None = None
    """Where the embedded data set is built."""
    train: str | list[SourceConfig]
    """Training data: webdataset shards, JSONL, LLaVA or ShareGPT JSON, Parquet or Arrow; a path, folder, brace or glob
    pattern, here or wherever fsspec reads (`s3://...`), or a list of these."""
    eval: str | list[SourceConfig] | None = None
    """Held-out data, in the same forms."""
    image_dir: str | None = None
    """Folder that image paths are relative to; null: the folder of the file that names them."""
    index_dir: str | None = None
    """Folder of the index files that `loongforge data index` writes; null: beside the data."""
    tokenizer: str
    """Folder of a Hugging Face tokenizer with a chat template."""
    chat_template: str | None = None
    """Jinja file that replaces the tokenizer's chat template."""
    image_token: str = "<image>"
    """The token that image features replace."""
    placeholder: str | None = None
    """What stands for an image in the text of messages; null: `image_token`. With a placeholder of its own the chat
    template writes what it writes around images (`<image>` for Qwen2-VL, whose token is `<|image_pad|>`)."""
    image_begin: str | None = None
    """Text before the tokens of an image, all its tiles together, that the chat template does not write (`<img>` for
    InternVL)."""
    image_end: str | None = None
    """Text after them (`</img>`)."""
    max_tiles: int = 1
    """Above 1: an image is cut into at most so many tiles of the encoder's size, in the grid nearest to its aspect
    ratio (as InternVL does), so that large images keep their detail. A tile takes as many tokens as an image."""
    thumbnail: bool = True
    """With several tiles, the whole image is one more."""
    max_length: int | None = None
    """Longest sample in tokens, image tokens included; null: the LLM's context."""
    bad_sample: Literal["fail", "skip"] = "fail"
    """`fail`: stop at the first bad sample; `skip`: replace it and note it in quarantine.jsonl."""
    max_bad: int = 100
    """With `skip`: stop after this many different bad samples."""
    max_bad_ratio: float = 1.0
    """Stop when more than this part of the samples so far was left out, bad or too long; checked after 1000 samples."""
    too_long: Literal["drop", "fail", "truncate_text"] = "fail"
    """What a sample beyond `max_length` is. `fail`: a bad one, see `bad_sample`; `drop`: always left out and noted, not
    counted by `max_bad`; `truncate_text`: cut to fit, images and at least one label token stay."""
    max_sample_bytes: int = 268435456
    """A sample whose files are larger together is a bad one, and is not read."""
    prefetch: int = 2
    """Steps that are prepared ahead in the background; 0: none."""
    shuffle: bool = True
    """Draw a new order in every epoch."""


@dataclass(kw_only=True)
class PackingConfig:
    """Several samples in one row, each a document of its own: nothing is padded but the end of the row."""

    enabled: bool = False
    """Pack the samples of a global batch into micro-batches of at most `trainer.micro_batch_tokens`."""


@dataclass(kw_only=True)
class BalanceConfig:
    """Which rank and micro-batch each sample of a global batch goes to; needs packing. What is learned stays."""

    mode: Literal["none", "llm", "full"] = "none"
    """`llm`: by the whole cost of samples, images encoded where their sample is; `full`: images encoded on any rank."""
    objective: Literal["auto", "one_barrier", "lock_step", "pipeline"] = "auto"
    """Where ranks wait for one another; auto: `pipeline` with pipeline stages, else `lock_step` with `full`."""
    refine_every: int = 0
    """Refine the costs of samples from measured times after every so many steps; 0: they stay what FLOPs say. Runs are
    then no longer equal bit by bit, since which rank takes a sample depends on the clock."""
    patch_cap: int | None = None
    """Most image patches that an encoder replica takes in a micro-batch; null: no limit."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW through megatron-core, and its learning-rate schedule."""

    lr: float
    """Highest learning rate, reached after the warm-up."""
    min_lr_ratio: float = 0.05
    """The schedule ends at `lr * min_lr_ratio`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from zero."""
    weight_decay: float = 0.0
    """Applied to matrices, not to biases and norms."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the root of the mean square gradient."""
    clip_grad: float = 1.0
    """Joint norm of all components' gradients is clipped to this; 0: never."""
    distributed: bool = False
    """Shard optimizer state over data-parallel ranks (ZeRO-1)."""


@dataclass(kw_only=True)
class TrainerConfig:
    """What the run does."""

    steps: int
    """Optimizer steps of the whole run."""
    global_batch_size: int
    """Samples per optimizer step, over all ranks."""
    micro_batch_size: int
    """Samples per forward pass of one data-parallel rank, at most: a smaller share of the batch is taken whole."""
    micro_batch_tokens: int | None = None
    """Tokens of a packed micro-batch at most, image tokens included; null: `micro_batch_size` longest samples."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of parameters and activations; bf16 keeps fp32 copies in the optimizer."""
    seed: int = 1234
    """Decides the first weights and the order of the data."""
    threads: int | None = None
    """CPU threads per process; null: 2, or fewer where processes share the cores."""
    eval_every: int = 0
    """Evaluate after every so many steps and at the end; 0: only at the end."""
    eval_samples: int | None = None
    """Held-out samples per evaluation during training; null: all."""
    eval_micro_batch_size: int = 64
    """Samples per forward pass in evaluation."""
    sanity_samples: int = 8
    """Held-out samples evaluated before step 1, so that a broken evaluation fails at once."""
    generate_samples: int = 3
    """Answers generated and logged with each evaluation."""
    max_new_tokens: int = 32
    """Longest generated answer."""
    export_hf_every: int = 0
    """After every so many steps, and at the end, write a Hugging Face folder to `exports/` of the run; 0: never."""
    max_skipped: int = 20
    """Stop after so many steps skipped in a row for a non-finite loss or gradient."""
    encode_window: int | None = None
    """Micro-batches whose images are encoded together; null: as few as keep every encoder replica busy, and all of a
    step where the LLM is a pipeline on the same ranks. Fewer need less memory and drain the pipeline more often."""
    recompute: Literal["none", "full"] = "none"
    """Recompute activations in the backward pass (LLM and ViT layers)."""
    compile: Literal["off", "layers"] = "off"
    """`layers`: `torch.compile` each transformer layer, where the backend can (`loongforge backends`)."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every: int = 0
    """Save after every so many steps and at the end; 0: only at the end."""
    keep: int = 2
    """The newest so many stay."""


@dataclass(kw_only=True)
class LoggingConfig:
    """Where progress goes, besides `metrics.jsonl`."""

    every: int = 10
    """Steps between console lines (the first steps are always shown)."""
    console: Literal["auto", "rich", "plain"] = "auto"
    """`rich`: colours and a live bar; `plain`: lines; `auto`: rich in a terminal."""
    tensorboard: bool = True
    """Write TensorBoard files to `tensorboard/` of the run."""
    wandb: str | None = None
    """Weights & Biases project; null: off."""
    samples: bool = False
    """Write the ids of every step's samples to samples.jsonl."""


@dataclass(kw_only=True)
class RunConfig:
    """Where the run lives."""

    dir: str | None = None
    """Run directory; null: runs/<recipe>/<time>."""
    resume: str = "auto"
    """`auto`: go on where `dir` stopped; `never`; or a run or checkpoint folder to go on from."""


@dataclass(kw_only=True)
class Config:
    """A whole recipe, composed and resolved."""

    version: int = SCHEMA_VERSION
    """Version of this schema; a saved config of a newer one is refused."""
    name: str
    """The recipe's name; part of the default run directory."""
    plugins: list[str] = field(default_factory=list)
    """Python files or modules that register components of your own."""
    backend: str = "auto"
    """`auto`, or the name of a backend (`loongforge backends`)."""
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    packing: PackingConfig = field(default_factory=PackingConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    cluster: ClusterConfig | None = None
    run: RunConfig = field(default_factory=RunConfig)
