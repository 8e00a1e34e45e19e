"""Which rank holds which shard of which component. Pure arithmetic: no torch, no processes."""

from __future__ import annotations

from dataclasses import dataclass

from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig, ModelConfig


@dataclass(frozen=True)
class Coordinates:
    """Place of one rank."""

    tp: int
    dp: int
    pp: int


@dataclass(frozen=True)
class Layout:
    """Ranks as a grid `[pp, dp, tp]`, the last axis running fastest (megatron-core's order).

    The LLM fills the grid. The encoder and the projector live on the first pipeline stage, with the LLM's
    tensor-parallel and data-parallel sizes.
    """

    world_size: int
    tp: int = 1
    pp: int = 1
    sequence_parallel: bool = False

    @classmethod
    def from_model(cls, model: ModelConfig, world_size: int) -> Layout:
        """The layout that the recipe asks for on so many ranks.

        Raises:
            UserError: the ranks cannot be divided that way.
        """
        wanted = model.llm.parallel
        layout = cls(world_size, 1 if wanted.tp is None else wanted.tp, wanted.pp, wanted.sequence_parallel)
        found = layout._problems(model)
        if found:
            raise UserError("The layout does not fit:\n" + "\n".join(f"  - {line}" for line in found))
        return layout

    def _problems(self, model: ModelConfig) -> list[str]:
        found = []
        for size, name in ((self.tp, "tp"), (self.pp, "pp")):
            if size < 1:
                return [f"model.llm.parallel.{name}={size} must be at least 1"]
        block = self.tp * self.pp
        if self.world_size % block:
            nearest = max(block, self.world_size // block * block)
            found.append(
                f"model.llm.parallel tp={self.tp} x pp={self.pp} needs a multiple of {block} processes, "
                f"not {self.world_size}; nearest: launcher.nproc={nearest}"
            )
        elif model.llm.parallel.dp not in (None, self.dp):
            found.append(
                f"model.llm.parallel.dp={model.llm.parallel.dp} does not fit: {self.world_size} processes / "
                f"(tp={self.tp} x pp={self.pp}) leave dp={self.dp}"
            )
        if self.sequence_parallel and self.tp == 1:
            found.append("model.llm.parallel.sequence_parallel=true needs tp of at least 2")
        for name in ("vision", "projector", "llm"):
            component = getattr(model, name)
            if component is not None:
                found += self._component_problems(f"model.{name}.parallel", component, is_llm=name == "llm")
        return found

    def _component_problems(self, key: str, component: ComponentConfig, *, is_llm: bool) -> list[str]:
        wanted, found = component.parallel, []
        for name, neutral in (("cp", 1), ("ep", 1), ("ranks", None)):
            if getattr(wanted, name) != neutral:
                found.append(f"{key}.{name}={getattr(wanted, name)} is not available yet; allowed: {neutral}")
        if is_llm:
            return found
        if wanted.tp not in (None, self.tp):
            found.append(f"{key}.tp={wanted.tp} differs from the LLM's tp={self.tp}; not available yet; use null")
        if wanted.dp not in (None, self.dp):
            found.append(f"{key}.dp={wanted.dp} differs from the LLM's dp={self.dp}; not available yet; use null")
        if wanted.pp != 1 or wanted.sequence_parallel:
            found.append(f"{key}: pp and sequence_parallel are for the LLM only")
        return found

    @property
    def dp(self) -> int:
        """Data-parallel size."""
        return self.world_size // (self.tp * self.pp)

    def coordinates(self, rank: int) -> Coordinates:
        """Place of a rank in the grid."""
        return Coordinates(rank % self.tp, rank // self.tp % self.dp, rank // (self.tp * self.dp))

    def ranks(self, component: str) -> range:
        """Ranks that hold a shard of `vision`, `projector` or `llm`."""
        return range(self.world_size if component == "llm" else self.tp * self.dp)
