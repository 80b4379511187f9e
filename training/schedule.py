"""The learning rate at every step."""

import math


def learning_rate(step: int, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Linear warm-up to `peak` over `warmup` steps, then half a cosine down to `floor` times `peak` at `total`.

    Steps count from 0.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    cosine = math.cos(math.pi * (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * (1 + cosine) / 2)
