"""Whatever goes wrong becomes a sentence, and the server lives on."""

import contextlib
import logging
from collections.abc import Iterator
from html import escape

import gradio as gr

from .studio import is_out_of_memory

logger = logging.getLogger(__name__)


def sentence_of(error: Exception) -> str:
    """What to tell the person at the page; what they cannot know goes to the log of the server."""
    if is_out_of_memory(error):
        return "The memory is not enough for this picture. Choose a smaller size or a shorter prompt."
    if isinstance(error, ValueError | TypeError | OSError):
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    logger.error("A request failed.", exc_info=error)
    return f"Something went wrong ({type(error).__name__}). The terminal that runs the demo says more."


@contextlib.contextmanager
def told_to_clients() -> Iterator[None]:
    """Turn exceptions into what gradio hands on to callers of the API: the sentence alone."""
    try:
        yield
    except Exception as error:
        raise gr.Error(escape(sentence_of(error)), print_exception=False) from None
