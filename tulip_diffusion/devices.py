"""Where models run when nobody says where."""

import torch


def best_device() -> str:
    """ "cuda", "mps" or "cpu": the fastest kind of device that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
