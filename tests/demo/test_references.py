"""What refers to what, read off the shipped family's states."""

import pytest

from tulip_diffusion.demo import markup
from tulip_diffusion.demo.references import references
from tulip_diffusion.embedded import ASSETS, load_embedded_pipeline

PROMPT = (
    "On the top shelf, first place, stands a green tulip. Lower second cup like the tulip. "
    "In the fourth place of the bottom shelf is a boat. It is pink."
)
FAR = "Nothing has been moved since last summer. Please do not touch anything. " * 6


@pytest.fixture(scope="module")
def pipelines():
    return {"CLIP": load_embedded_pipeline("clip"), "TULIP": load_embedded_pipeline("tulip")}


def test_each_reference_names_the_sentence_that_it_needs_and_what_each_encoder_resolved(pipelines):
    sentences, (cup, boat) = references(PROMPT, pipelines, ASSETS / "read_out")
    assert (sentences[cup.sentence], sentences[cup.source]) == (
        "Lower second cup like the tulip.",
        "On the top shelf, first place, stands a green tulip.",
    )
    assert (sentences[boat.sentence], sentences[boat.source]) == (
        "It is pink.",
        "In the fourth place of the bottom shelf is a boat.",
    )
    assert (cup.colour, boat.colour) == ("green", "pink")
    assert cup.resolved["CLIP"] == (True, True)  # all of it lies within CLIP's window


def test_what_lies_beyond_an_encoders_tokens_is_not_resolved(pipelines):
    first, _, rest = PROMPT.partition(". ")
    _, found = references(f"{first}. {FAR}{rest}", pipelines, ASSETS / "read_out")
    assert all(reference.resolved["CLIP"] == (False, False) for reference in found)


def test_a_prompt_from_beyond_the_world_has_no_references(pipelines):
    assert references("A small harbour town. It is pink.", pipelines, ASSETS / "read_out") == ([], [])
    assert markup.references([], []) == ""


def test_the_page_frames_the_sentence_that_is_needed_and_escapes_what_it_shows(pipelines):
    sentences, found = references(PROMPT + " <b>dust</b>.", pipelines, ASSETS / "read_out")
    shown = markup.references(sentences, found)
    assert "[data-n='1']:is(:hover, :focus)) [data-n='0']" in shown and 'tabindex="0" data-n="1"' in shown
    assert "&lt;b&gt;" in shown and "<b>dust" not in shown
