"""Peak memory of training. T = tokens of a microbatch decide most of it: policy.microbatch_tokens."""

import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_memory_gib(device: torch.device) -> float:
    """The most memory so far, in GiB: on CUDA what tensors held on the device, elsewhere what this process held resident.

    It never falls: the step at which it rises is the one that needed more. The counters are only read; resetting them would change
    what others measure of this process, such as a benchmark or `time -v`. The resident peak includes Python, libraries, loading.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if STATUS.exists():  # what getrusage tells on Linux may be the peak of the process that started this one
        (line,) = [one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**20  # in KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
