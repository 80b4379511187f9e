"""The options know names only, so that they need no torch: they must be those of the tables that hold the rest."""

from tulip_diffusion import evaluate
from tulip_diffusion.evaluation import datasets, options, prompts, retrieval_sets


def test_the_options_name_what_there_is():
    assert tuple(prompts.PROMPTS) == options.PROMPTS
    assert tuple(datasets.WORLD) == options.WORLD
    assert tuple(retrieval_sets.LAYOUTS) == options.LAYOUTS


def test_every_evaluation_has_options():
    assert set(options.OPTIONS) == set(evaluate.EVALUATIONS)
