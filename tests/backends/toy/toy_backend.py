"""A backend as another distribution would bring it: nothing of loongforge's own backends is imported."""

import contextlib
import resource
import sys
import time
from types import SimpleNamespace

from loongforge.kernels.backend import Detection, Support
from loongforge.kernels.impl import Impl
from loongforge.kernels.tools import DeviceTools


def _swiglu():
    import torch

    def swiglu(gate_up):
        gate, up = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up

    return swiglu


class ToyBackend:
    """The host under another name."""

    name, title, torch_device_type, dist_backend = "toy", "A toy", "cpu", "gloo"
    probe_order, shared_device, hidden_by = 500, True, {}

    def detect(self):
        return Detection("ok", ("it is always here",))

    def device_count(self):
        return 1

    def versions(self):
        return {"python": sys.version.split()[0], "toy": "1.0"}

    def capability(self, name):
        return Support("yes" if name in ("bf16", "fp64") else "no", "documented: this file")

    def activate(self):
        from importlib.metadata import entry_points

        # megatron-core on a machine without CUDA: a vendor with devices of its own has no need of this
        (cpu,) = [p for p in entry_points(group="loongforge.backends") if p.name == "cpu"]
        cpu.load()().activate()

    def set_threads(self, threads):
        import torch

        torch.set_num_threads(threads)

    def set_device(self, local_rank):
        pass

    def device(self):
        import torch

        return torch.device("cpu")

    def synchronize(self):
        pass

    @contextlib.contextmanager
    def timer(self):
        found, began = SimpleNamespace(seconds=0.0), time.perf_counter()
        yield found
        found.seconds = time.perf_counter() - began

    def seed(self, seed):
        import torch

        torch.manual_seed(seed)

    def rng_state(self):
        import torch

        return torch.get_rng_state()

    def set_rng_state(self, state):
        import torch

        torch.set_rng_state(state)

    def memory(self):
        return {}

    def peak_memory_bytes(self):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def peak_flops(self, dtype):
        return None

    def tools(self):
        return DeviceTools()

    def kernels(self):
        return [Impl(op="swiglu", name="toy", load=_swiglu, priority=99, source="this file")]

    def refused_kernels(self):
        return {("rotary", "torch"): "to see it refused"}
