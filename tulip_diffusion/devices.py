"""Where models run: the best device there is, or the one that somebody names."""


def best_device() -> str:
    """ "cuda", "mps" or "cpu": the fastest kind of device that this machine has."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def fast_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; a CPU that does not takes up to 70 times float32's time."""
    import torch

    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_device(name: str) -> str:
    """`name`, if this machine can run models there.

    Raises:
        ValueError: torch knows no such device, or this machine has none of the kind, or not so many.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device).add_(1)
        usable = device.type != "meta"  # it computes nothing
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):
        usable = False
    if not usable:
        raise ValueError(f"Device {name!r} cannot be used on this machine. Use {best_device()!r}.")
    return name
