"""What is shown while something takes long."""

import sys


def say(text: str) -> None:
    """A line for the person who waits, beside the results."""
    print(text, file=sys.stderr, flush=True)


def is_watched() -> bool:
    """Whether anybody sees a progress bar."""
    return sys.stderr.isatty()


def hide_loading_bars() -> None:
    """No bars while weights are read, which takes seconds; downloads keep theirs where somebody watches."""
    from diffusers.utils import logging as diffusers
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers

    diffusers.disable_progress_bar()
    transformers.disable_progress_bar()
    if not is_watched():
        disable_progress_bars()
