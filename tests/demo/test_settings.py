import argparse
import itertools
import math

import pytest

from tulip_diffusion.demo.commands import name_and_password
from tulip_diffusion.demo.settings import LENGTHS, OVERFLOWS, Settings
from tulip_diffusion.demo.weights import Weights
from tulip_diffusion.pipelines.conditioning import Conditioning


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": " \n"}, "The prompt is empty"),
        ({"prompt": "x" * 100_000}, "100,000 characters"),
        ({"negative": "x" * 20_001}, "negative prompt has 20,001 characters"),
        ({"steps": 0}, "steps must be a whole number from 1 to 100, got 0"),
        ({"steps": 10**9}, "from 1 to 100"),
        ({"steps": 2.5}, "whole number"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance": "high"}, "got 'high'"),
        ({"seed": -1}, "seed"),
        ({"overflow": "fold"}, "windows, stretch, truncate"),
        ({"length": "1000000"}, "own, auto, bucket, exact, 77, 248"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Settings(**{"prompt": "A tulip.", **fields})


def test_policies_of_the_encoders_themselves_need_no_options():
    assert Settings("A tulip.").conditioning == {}
    chosen = Settings("A tulip.", overflow="windows", length="248").conditioning
    assert chosen == {"overflow": "windows", "sequence_length": 248}
    assert Settings("A tulip.", length="exact").conditioning == {"sequence_length": "exact"}


def test_every_choice_is_one_that_the_pipelines_take():
    for overflow, length in itertools.product(OVERFLOWS, LENGTHS):
        Conditioning(**Settings("A tulip.", overflow=overflow, length=length).conditioning)


def test_weights_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="--tulip needs --model"):
        Weights(tulip="tulip.pt")
    with pytest.raises(ValueError, match="--model needs encoders to set beside its own"):
        Weights(model="sdxl")
    with pytest.raises(ValueError, match="--finelip FILE"):
        Weights(model="sdxl", tulip="tulip.pt", finelip=True)
    assert Weights(model="sdxl", tulip="tulip.pt").titles == ("CLIP", "TULIP")
    assert Weights(finelip=True).titles == ("CLIP", "Long-CLIP", "FineLIP", "TULIP")


def test_a_password_needs_a_name():
    assert name_and_password("ada:love:lace") == ("ada", "love:lace")
    for wrong in ("ada", ":secret", "ada:"):
        with pytest.raises(argparse.ArgumentTypeError, match="USER:PASSWORD"):
            name_and_password(wrong)
