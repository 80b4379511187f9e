"""Where models run when nobody says where."""


def best_device() -> str:
    """ "cuda", "mps" or "cpu": the fastest kind of device that this machine has."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
