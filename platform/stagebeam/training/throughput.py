"""What the hardware was made to do: utilisation and memory."""

from __future__ import annotations

import resource

import torch

from stagebeam.training.contracts import StepReport

# Dense bf16 peak of one device in TFLOP/s, from the vendors' data sheets, by what torch calls it.
_PEAKS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "L40S": 362.0,
    "A10": 125.0,
}


def peak_flops(tflops: float | None) -> float | None:
    """FLOP/s of one device: what the recipe says, or of a known GPU."""
    if tflops is not None:
        return tflops * 1e12
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak * 1e12 for key, peak in _PEAKS.items() if key in name), None)


def utilisation(report: StepReport, peak: float) -> tuple[float, float]:
    """MFU and HFU of a step: FLOPs over what the ranks' devices, of this peak, could have done.

    MFU counts a forward pass and a backward one of twice its cost; HFU the recomputed forward pass
    too (PaLM, arXiv 2204.02311, appendix B). Both count the vision tower, and tokens that are
    there, not padding.
    """
    possible = report.seconds * report.ranks * peak
    passes = 4 if report.recomputed else 3
    return 3 * report.forward_flops / possible, passes * report.forward_flops / possible


def memory_bytes(device: torch.device) -> int:
    """Most memory so far: torch's on a GPU, the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
