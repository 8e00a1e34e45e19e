"""Runs the composed model over micro-batches: encoders in windows, the LLM through megatron-core's schedules."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from loongforge.components.transformer.cache import KVCache
from loongforge.kernels.backend import widest_dtype
from loongforge.kernels.phases import PhaseClock
from loongforge.kernels.tools import DeviceTools
from loongforge.model.ahead import ImageRowStream, encode_ahead, windows_ahead
from loongforge.model.balance import ExpertCounts
from loongforge.model.checks import window_size
from loongforge.model.encoding import Bridge, ImageEncoder
from loongforge.model.vlm import VisionLanguageModel
from loongforge.model.windows import Inputs, Window
from loongforge.parallel.exchange import Exchange, Message
from loongforge.parallel.groups import Groups

Result = TypeVar("Result")
MicroBatches = Mapping[int, Sequence[Inputs]]
"""Micro-batches by LLM replica, of all replicas that a rank works on (`Groups.replicas`)."""


class _TimedStages(P2PCommunicator):
    """Messages between pipeline stages, whose time is the pipeline's."""

    phases: PhaseClock

    def _communicate(self, **options: Any) -> Any:
        self.phases.switch("pipeline")
        return super()._communicate(**options)


class Runner:
    """Forward and backward passes of one rank.

    Args:
        model: This rank's parts.
        groups: Of all components; the LLM's pipeline carries the activations.
        encode_window: Micro-batches whose images are encoded together; None: see `window_size`.
        observe: Called with every message of image rows that this rank receives.
        phases: Times the parts of a step; None: nothing is timed.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        groups: Groups,
        *,
        encode_window: int | None = None,
        observe: Callable[[Message], None] | None = None,
        phases: PhaseClock | None = None,
    ) -> None:
        self.model, self.groups, self.encode_window = model, groups, encode_window
        self.phases = phases or PhaseClock(DeviceTools())
        self.pipelined = groups.layout.llm.pp > 1
        self.device, self.wide = next(model.parameters()).device, widest_dtype()
        self.encodings = 0
        """Windows of the last `train` that this rank has encoded images of."""
        self.experts: ExpertCounts | None = None
        """Counts of the last `train`; None: the LLM has no experts."""
        if model.routers is not None:
            self.experts = ExpertCounts(model.routers, getattr(model.llm, "routing", None), groups, self.device)
        if model.images is not None:
            exchange = Exchange(groups, observe, self.phases)
            self.encoder = ImageEncoder(model, groups, exchange, self.device)
            self.bridge = Bridge(model.images, groups, exchange, self.device)

    def train(self, micro_batches: MicroBatches, num_label_tokens: int) -> torch.Tensor:
        """Adds the gradient of `sum of losses / num_label_tokens` to the model's gradients.

        Args:
            micro_batches: All of one replica have one shape `[B, S]`; every replica has as many.
            num_label_tokens: Labelled tokens of the whole global batch, over all ranks.

        Returns:
            Scalar in the device's widest dtype: this rank's part of that quotient; 0 except on the last pipeline stage.
        """
        self.encodings = 0
        if self.experts is not None:
            self.experts.begin()
            number = len(next(iter(micro_batches.values()), ()))
            if self.experts.spec.counts_first(number, self.groups.layout.llm.pp):
                self._count_experts(micro_batches, self.experts)
        if self.model.images is None:
            parts = self._train_llm(self._own(micro_batches), num_label_tokens, lambda number: None)
        elif self.groups.layout.decoupled:
            parts = self._train_decoupled(micro_batches, num_label_tokens)
        else:
            parts = []
            for part in self._windows(micro_batches):
                parts += self._train_window(part, num_label_tokens)
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=self.wide, device=self.device)

    def _count_experts(self, micro_batches: MicroBatches, experts: ExpertCounts) -> None:
        """A pass of the whole step without gradients, which the loss that balances experts needs before the first
        backward pass."""

        def step(numbered: Iterator[Any], model: VisionLanguageModel) -> tuple[torch.Tensor, Callable[..., Any]]:
            number, batch = next(numbered)
            with experts.noting():
                hidden = model(batch, rows[number] if model.pre_process else None)
            return hidden, lambda hidden, non_loss_data: None

        for part in self._windows(micro_batches) if self.model.images is not None else [micro_batches]:
            rows = self.encode(part)
            with self.evaluating(), torch.no_grad():
                self._schedule(self._own(part), step, forward_only=True, collect_non_loss_data=True)
        experts.settle()
        experts.forget()

    def _train_window(self, micro_batches: MicroBatches, num_label_tokens: int) -> list[torch.Tensor]:
        """Colocated: all ranks encode, then the LLM runs, then gradients return."""
        window = self._window(micro_batches)
        encoded = self.encoder.forward(window)
        self.encodings += bool(encoded.rows)
        delivery = self.bridge.deliver(window, encoded.rows)
        rows = self.bridge.accept(window, delivery)
        delivery.sent()
        parts = self._train_llm(self._own(micro_batches), num_label_tokens, rows.__getitem__)
        if self.bridge.returns:
            returned = self.bridge.give_back(window, rows)
            self.encoder.backward(encoded, returned.wait())
            returned.sent()
        return parts

    def _train_decoupled(self, micro_batches: MicroBatches, num_label_tokens: int) -> list[torch.Tensor]:
        windows = [self._window(part) for part in self._windows(micro_batches)]
        size = self._window_size(micro_batches)
        depth = windows_ahead(self.groups.layout.llm.pp, size)
        if self.model.llm is None:
            encode_ahead(self.encoder, self.bridge, windows, depth)
            return []
        stream = ImageRowStream(self.bridge, windows, size, depth)
        parts = self._train_llm(self._own(micro_batches), num_label_tokens, stream.rows)
        stream.close()
        return parts

    def _train_llm(
        self, batches: Sequence[Inputs], num_label_tokens: int, image_rows: Callable[[int], torch.Tensor | None]
    ) -> list[torch.Tensor]:
        one, phases = torch.ones((), dtype=torch.int, device=self.device), self.phases
        between = "pipeline" if self.pipelined else "other"
        experts = self.experts

        def step(numbered: Iterator[Any], model: VisionLanguageModel) -> tuple[torch.Tensor, Callable[..., Any]]:
            number, batch = next(numbered)
            phases.switch(between)

            def loss(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
                with phases("llm_forward"):
                    mean = model.losses(hidden, batch).sum() / num_label_tokens
                return self._begins_backward(mean), one, mean.detach().to(self.wide)

            with phases("llm_forward"):
                rows = image_rows(number) if model.pre_process else None
                with experts.noting() if experts is not None else contextlib.nullcontext():
                    output = model(batch, rows)
                if experts is not None:
                    experts.settle_in_time()
            return output if model.post_process else self._begins_backward(output), loss

        with phases(between):
            return self._schedule(batches, step)

    def _begins_backward(self, output: torch.Tensor) -> torch.Tensor:
        """What the schedule starts a backward pass from; until its next call, that is what the time goes to."""
        if output.requires_grad:
            output.register_hook(lambda grad: self.phases.switch("llm_backward"))
        return output

    def _own(self, micro_batches: MicroBatches) -> Sequence[Inputs]:
        """Of the LLM replica that this rank is a part of."""
        place = self.groups.place
        return [] if place is None else micro_batches.get(place.dp, [])

    def _window_size(self, micro_batches: MicroBatches) -> int:
        first = next(iter(micro_batches.values()))
        return window_size(self.groups.layout, self.encode_window, len(first), first[0].tokens.shape[0])

    def _windows(self, micro_batches: MicroBatches) -> list[MicroBatches]:
        size, number = self._window_size(micro_batches), len(next(iter(micro_batches.values())))
        return [
            {replica: batches[first : first + size] for replica, batches in micro_batches.items()}
            for first in range(0, number, size)
        ]

    def _window(self, micro_batches: MicroBatches) -> Window:
        assert self.model.images is not None
        return Window(self.groups.layout, micro_batches, self.model.images.token)

    def _schedule(self, micro_batches: Sequence[Inputs], step: Callable[..., Any], **options: Any) -> list[Any]:
        if not micro_batches:
            return []
        num_samples, length = micro_batches[0].tokens.shape
        config = self.model.config
        groups = self.groups.llm
        assert groups is not None
        if self.pipelined:
            stages = options["p2p_communicator"] = _TimedStages(pp_group=groups.pp, config=config)
            stages.phases = self.phases
        run = get_forward_backward_func(pp_size=self.groups.layout.llm.pp, vp_size=None)
        return run(
            forward_step_func=step,
            data_iterator=iter(enumerate(micro_batches)),
            model=self.model,
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=num_samples,
            pg_collection=groups,
            **options,
        )

    @torch.no_grad()
    def encode(self, micro_batches: MicroBatches) -> list[torch.Tensor | None]:
        """Encodes images, without gradients; every rank that works on these replicas takes part.

        Returns:
            Image rows of each of this rank's own micro-batches, for `forward`; empty where it merges none.
        """
        if self.model.images is None:
            return [None] * len(self._own(micro_batches))
        window = self._window(micro_batches)
        with self.evaluating():
            delivery = self.bridge.deliver(window, self.encoder.forward(window).rows)
            rows = self.bridge.accept(window, delivery)
            delivery.sent()
        return rows

    @torch.no_grad()
    def forward(
        self,
        batches: Sequence[Inputs],
        image_rows: Sequence[torch.Tensor | None],
        consume: Callable[[torch.Tensor, Any], Result],
    ) -> list[Result]:
        """Forward passes of the LLM only.

        Args:
            batches: Micro-batches of this rank's own replica, all of one shape `[B, S]`.
            image_rows: From `encode`.
            consume: Called on the last stage with the hidden states `[S, B, H]` of all positions of a micro-batch, and
                that batch.

        Returns:
            What `consume` returned, in order; empty on other stages.
        """

        def step(numbered: Iterator[Any], model: VisionLanguageModel) -> tuple[torch.Tensor, Callable[..., Any]]:
            number, batch = next(numbered)
            output = model(batch, image_rows[number] if model.pre_process else None)
            return output, lambda hidden, non_loss_data: consume(model.llm.whole(hidden), batch)

        with self.evaluating():
            return self._schedule(batches, step, forward_only=True, collect_non_loss_data=True)

    @torch.inference_mode()
    def extend(self, batch: Inputs, image_rows: torch.Tensor | None, cache: KVCache) -> torch.Tensor | None:
        """Puts tokens behind rows, stage after stage, within `evaluating`.

        Args:
            batch: The new tokens `[B, T]` of this rank's own replica; T is a multiple of `extension_multiple`.
            image_rows: From `encode`, of the images among them.
            cache: Of the rows; the caller ends the step with `KVCache.advance`.

        Returns:
            Hidden states `[T, B, H]` of all new tokens (`VisionLanguageModel.llm.logits` takes them as gathered); None
            except on the last stage.
        """
        model, llm, begins = self.model, self.model.llm, cache.is_empty
        assert self.groups.llm is not None
        pipeline = self.groups.llm.pp
        stage = pipeline.rank()
        if not model.pre_process:
            rows, tokens = batch.tokens.shape
            parts = (llm.cp_group.size() if begins else 1) * (llm.tp_group.size() if self.splits_sequence else 1)
            shape, dtype = (tokens // parts, rows, llm.config.hidden_size), llm.config.pipeline_dtype
            received = torch.empty(shape, dtype=dtype, device=self.device)
            dist.recv(received, group=pipeline, group_src=stage - 1)
            model.set_input_tensor(received)
        hidden = model(batch, image_rows if model.pre_process else None, cache)
        if not model.post_process:
            dist.send(hidden.contiguous(), group=pipeline, group_dst=stage + 1)
            return None
        return llm.whole(hidden) if begins else llm.whole_continued(hidden)

    @property
    def splits_sequence(self) -> bool:
        """Whether tensor-parallel ranks divide the tokens between layers."""
        return self.groups.layout.sequence_parallel

    def extension_multiple(self, cache: KVCache) -> int:
        """What the number of tokens that `extend` puts behind rows has to be a multiple of."""
        layout = self.groups.layout
        if cache.is_empty:
            return layout.sequence_multiple
        return layout.llm.tp if self.splits_sequence else 1

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in evaluation mode."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def from_last_stage(self, tensor: torch.Tensor) -> torch.Tensor:
        """The last pipeline stage's tensor on every stage of the pipeline; shapes and dtypes agree."""
        if self.pipelined:
            assert self.groups.llm is not None
            group = self.groups.llm.pp
            dist.broadcast(tensor, src=dist.get_process_group_ranks(group)[-1], group=group)
        return tensor
