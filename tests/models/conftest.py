"""State dicts of a whole CLIP and of its text tower, under OpenAI's names."""

import pytest

from tests.models.reference import open_clip_model


@pytest.fixture(scope="module")
def whole_clip():
    """A whole CLIP's state dict under OpenAI's names."""
    return {key: value.detach() for key, value in open_clip_model().state_dict().items()}


@pytest.fixture(scope="module")
def text_only(whole_clip):
    return {key: value for key, value in whole_clip.items() if not key.startswith(("visual", "logit", "positional"))}
