"""Beyond 77 tokens: every task runs, a prompt's image is its own, and every word counts."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

from tests.pipelines.tiny_sdxl import components, inputs, quiet, text_encoder, text_encoder_2, tulip_encoder, words
from tulip_diffusion import TulipTextModelWithProjection, stretch_position_embeddings
from tulip_diffusion.pipelines import PIPELINES, StableDiffusionXLTulipPipeline, attention
from tulip_diffusion.prompt_description import describe_prompt, word_positions
from tulip_diffusion.prompt_tokens import tokenize, tokenize_prompts
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.windows import split_windows

TASKS = pytest.mark.parametrize("tulip_class", PIPELINES, ids=lambda cls: cls.__name__)
NEGATIVE = "blurry, ugly"


@pytest.fixture
def pipe():
    return quiet(
        StableDiffusionXLTulipPipeline(**components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder()))
    )


def changed_at(prompt: str, token: int, word: str = "zebra") -> str:
    """`prompt` of words() with another word as its token number `token`, BOS being 0."""
    tokens = prompt.split()
    tokens[token - 1] = word
    return " ".join(tokens)


@TASKS
def test_prompts_of_any_length_run_and_are_the_same_alone_and_in_a_batch(tulip_class):
    pipe = quiet(tulip_class(**components(tulip_class, text_encoder=tulip_encoder())))
    prompts = [words(20), words(76), words(300), words(998)]
    together = pipe(**inputs(tulip_class, prompts, negative_prompt=[NEGATIVE] * 4)).images
    assert np.isfinite(together).all()
    for i in (0, 2):
        alone = pipe(**inputs(tulip_class, prompts[i], negative_prompt=NEGATIVE)).images[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-4)


@pytest.mark.parametrize("tokens", [10, 77, 78, 248, 500, 2000])
def test_lengths_across_the_buckets_edges_run(pipe, tokens):
    alone = pipe(**inputs(type(pipe), words(tokens - 2))).images[0]
    together = pipe(**inputs(type(pipe), [words(tokens - 2), words(160)])).images[0]
    np.testing.assert_allclose(together, alone, atol=1e-4)


@TASKS
def test_a_word_at_token_400_changes_the_image(tulip_class):
    pipe = quiet(tulip_class(**components(tulip_class, text_encoder=tulip_encoder())))
    prompt = words(498)
    images = [pipe(**inputs(tulip_class, text)).images for text in (prompt, changed_at(prompt, 400), prompt)]
    assert np.abs(images[0] - images[1]).max() > 1e-5
    assert np.array_equal(images[0], images[2])


def test_a_word_changes_the_states_from_its_place_on_and_none_before(pipe):
    prompt = words(498)
    before, after = (pipe.encode_prompt(text)[0][0] for text in (prompt, changed_at(prompt, 400)))
    moved = (before != after).any(dim=-1)
    assert before.shape == (500, 64)
    assert not moved[:400].any()
    assert moved[400:].all()


@pytest.mark.parametrize("tokens, bucket", [(10, 77), (77, 77), (78, 154), (154, 154), (155, 231), (248, 308)])
def test_a_prompt_takes_its_own_length_or_a_multiple_of_77(pipe, tokens, bucket):
    own = max(tokens, 77)
    for options, length in (({}, own), ({"sequence_length": "exact"}, own), ({"sequence_length": "bucket"}, bucket)):
        with pipe.conditioned(**options):
            states, negative, *_ = pipe.encode_prompt(words(tokens - 2), negative_prompt="bad")
        assert states.shape == negative.shape == (1, length, 64)
        assert torch.equal(states[0].any(dim=-1), torch.arange(length) < own), "padding is zeros"


@pytest.mark.parametrize("tokens", [20, 300])
def test_a_number_pads_and_cuts_as_the_paper_does(pipe, tokens):
    with pipe.conditioned(sequence_length=248):
        states = pipe.encode_prompt(words(tokens))[0]
    assert states.shape == (1, 248, 64)
    assert states.any(dim=-1).all(), "pads are shown to the UNet"
    ids = pipe.tokenizer(words(tokens), padding="max_length", truncation=True, max_length=248, return_tensors="pt")
    expected = pipe.text_encoder(ids.input_ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(states[..., :32], expected)


def test_a_long_prompt_reads_as_the_encoder_reads_it_alone(pipe):
    prompt = words(298)
    states = pipe.encode_prompt([words(20), prompt], negative_prompt=["bad", "worse"])[0]
    ids = pipe.tokenizer(prompt, return_tensors="pt", verbose=False).input_ids
    expected = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(states[1:, :300, :32], expected)


def test_a_thousand_token_prompt_leaves_no_trace(pipe):
    arguments = {"negative_prompt": NEGATIVE}
    before = pipe(**inputs(type(pipe), words(120), **arguments)).images
    pipe(**inputs(type(pipe), words(998), **arguments))
    assert np.array_equal(pipe(**inputs(type(pipe), words(120), **arguments)).images, before)


def test_hooks_are_gone_after_an_exception(pipe):
    def fail(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(**inputs(type(pipe), words(100)), callback_on_step_end=fail)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in pipe.unet.modules())
    assert "forward" not in pipe.unet.__dict__ and not attention.WRAPPED
    with pytest.raises(KeyboardInterrupt):
        pipe(**inputs(type(pipe), words(100)), callback_on_step_end=fail, weighting=None)
    assert pipe._conditioning.weighting == "a1111"


def test_windows_put_each_token_where_the_first_encoder_has_it(pipe):
    """Against a naive reading: each window alone through the stock second encoder."""
    prompt = words(190)
    states, _, pooled, _ = pipe.encode_prompt(prompt)
    ids = pipe.tokenizer_2(prompt, add_special_tokens=False, verbose=False).input_ids
    windows = split_windows(pipe.tokenizer_2.convert_ids_to_tokens(ids))
    assert len(windows) == 3
    for i, window in enumerate(windows):
        text = pipe.tokenizer_2.decode(ids[window.start : window.stop])
        inputs_2 = pipe.tokenizer_2(text, padding="max_length", max_length=77, return_tensors="pt")
        output = pipe.text_encoder_2(inputs_2.input_ids, output_hidden_states=True)
        own = output.hidden_states[-2][0, 1 : 1 + len(window)]
        torch.testing.assert_close(states[0, 1 + window.start : 1 + window.stop, 32:], own)
        if i == 0:
            torch.testing.assert_close(pooled, output.text_embeds)
            torch.testing.assert_close(states[0, 0, 32:], output.hidden_states[-2][0, 0])
        if i == 2:
            torch.testing.assert_close(states[0, 191, 32:], output.hidden_states[-2][0, 1 + len(window)])
            pipe.set_conditioning(pooled="last")
            torch.testing.assert_close(pipe.encode_prompt(prompt)[2], output.text_embeds)


def test_exclamation_marks_do_not_shift_the_second_encoder(pipe):
    first, second = tokenize_prompts(["wow!!! " + words(100)] * 2, [pipe.tokenizer, pipe.tokenizer_2], "a1111")
    assert first.ids == second.ids


def test_stretched_positions_are_long_clips_and_are_taken_back(pipe):
    pipe.set_conditioning(overflow="stretch")
    table = pipe.text_encoder_2.text_model.embeddings.position_embedding
    states = pipe.encode_prompt([words(20), words(150)])[0]
    assert pipe.text_encoder_2.text_model.embeddings.position_embedding is table

    long_clip = text_encoder_2(max_position_embeddings=248)
    weights = dict(pipe.text_encoder_2.state_dict())
    name = "text_model.embeddings.position_embedding.weight"
    weights[name] = stretch_position_embeddings(weights[name])
    long_clip.load_state_dict(weights)
    ids = pipe.tokenizer_2(words(150), return_tensors="pt", verbose=False).input_ids
    expected = long_clip(ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(states[1:, :152, 32:], expected)
    torch.testing.assert_close(states[:1, :77], pipe.encode_prompt(words(20))[0])


def test_a_tulip_second_encoder_reads_everything_at_once():
    second = tulip_encoder(1, TulipTextModelWithProjection)
    pipe = StableDiffusionXLTulipPipeline(
        **components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder(), text_encoder_2=second)
    )
    prompt = words(148)
    states, _, pooled, _ = pipe.encode_prompt(prompt)
    ids = pipe.tokenizer_2(prompt, return_tensors="pt", verbose=False).input_ids
    output = second(ids, output_hidden_states=True)
    torch.testing.assert_close(states[:, :150, 32:], output.hidden_states[-2])
    torch.testing.assert_close(pooled, output.text_embeds)


def test_a_long_clip_encoder_reads_as_far_as_its_table_goes():
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=text_encoder(max_position_embeddings=248))
    pipe = StableDiffusionXLTulipPipeline(**parts)
    states = pipe.encode_prompt([words(200), words(20), words(400)])[0]
    ids = pipe.tokenizer(words(200), return_tensors="pt", verbose=False).input_ids
    expected = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(states[:1, :202, :32], expected)
    assert states.shape == (3, 402, 64)


def test_the_tokenizers_own_length_does_not_matter(pipe):
    prompts = [words(20), words(200)]
    expected = pipe.encode_prompt(prompts)[0]
    pipe.tokenizer = load_tokenizer(max_length=248)
    assert torch.equal(pipe.encode_prompt(prompts)[0], expected)


def test_stock_encoders_in_both_slots_take_windows_too():
    pipe = StableDiffusionXLTulipPipeline(**components(StableDiffusionXLTulipPipeline, text_encoder=text_encoder()))
    assert pipe.encode_prompt(words(200))[0].shape == (1, 202, 64)


def test_prompt_2_of_another_length_keeps_its_own_words_and_weights(pipe):
    states = pipe.encode_prompt(words(20), prompt_2=f"{words(100)} (zebra:1.5)")[0]
    plain = pipe.encode_prompt(words(20), prompt_2=f"{words(100)} zebra")[0]
    assert states.shape == (1, 103, 64)
    torch.testing.assert_close(states[..., :32], plain[..., :32])
    torch.testing.assert_close(states[0, 101, 32:], 1.5 * plain[0, 101, 32:])


def test_prompt_and_negative_of_any_lengths_share_one(pipe):
    for prompt, negative in ((words(20), words(300)), (words(300), words(20)), ([words(9)] * 2, ["", words(99)])):
        states, negatives, pooled, negative_pooled = pipe.encode_prompt(prompt, negative_prompt=negative)
        assert states.shape == negatives.shape
        assert pooled.shape == negative_pooled.shape
    with pytest.raises(ValueError, match="3 texts for a batch of 2"):
        pipe.encode_prompt([words(9)] * 2, negative_prompt=["a", "b", "c"])


def test_saved_embeddings_give_the_same_image(pipe):
    prompts, negatives = [words(20), words(200)], ["bad", words(100)]
    expected = pipe(**inputs(type(pipe), prompts, negative_prompt=negatives)).images
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt(prompts, negative_prompt=negatives), strict=True))
    arguments = inputs(type(pipe), prompts) | {"prompt": None, **embeds}
    assert np.array_equal(pipe(**arguments).images, expected)
    only_positive = {name: embeds[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    arguments = inputs(type(pipe), prompts) | {"prompt": None, "negative_prompt": negatives, **only_positive}
    np.testing.assert_allclose(pipe(**arguments).images, expected, atol=1e-5)


def masks_in(pipe) -> list:
    """A list that fills with the masks that the UNet's cross-attention is given, as they come."""
    masks: list = []

    def keep(module, args, kwargs):
        masks.append(kwargs.get("attention_mask"))

    for module in pipe.unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.attn2.register_forward_pre_hook(keep, with_kwargs=True)
    return masks


@TASKS
def test_masked_padding_is_as_good_as_none(tulip_class):
    pipe = quiet(tulip_class(**components(tulip_class, text_encoder=tulip_encoder())))
    texts = {"prompt": words(200), "negative_prompt": words(200, 3)}
    own, padded = (
        pipe(**inputs(tulip_class, **texts), sequence_length=length).images for length in ("auto", "bucket")
    )
    np.testing.assert_allclose(padded, own, atol=1e-5)


def test_threads_that_share_a_unet_each_have_their_own_masks_and_scale(pipe):
    """Four pipelines at once, a stock one among them."""
    prompts = [words(20), words(160)]
    stock_class = StableDiffusionXLTulipPipeline.__bases__[1]
    runs = [(StableDiffusionXLTulipPipeline, {}), (StableDiffusionXLTulipPipeline, {"attention_scale": 1.5})] * 2

    def draw(pipeline_class, options):
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        own = quiet(pipeline_class(**{**pipe.components, "scheduler": scheduler}))
        texts = prompts if options is not None else [words(20)] * 2
        return own(**inputs(pipeline_class, texts, num_inference_steps=5), **(options or {})).images

    runs.append((stock_class, None))
    expected = [draw(*run) for run in runs]
    with ThreadPoolExecutor(len(runs)) as pool:
        found = list(pool.map(lambda run: draw(*run), runs))
    for image, alone in zip(found, expected, strict=True):
        np.testing.assert_allclose(image, alone, atol=1e-5)
    assert "forward" not in pipe.unet.__dict__ and not attention.WRAPPED


def test_threads_that_share_an_encoder_do_not_read_anothers_stretched_table(pipe):
    table = pipe.text_encoder_2.text_model.embeddings.position_embedding

    def read(overflow):
        own = StableDiffusionXLTulipPipeline(**pipe.components)
        own.set_conditioning(overflow=overflow)
        return [own.encode_prompt(words(120))[0] for _ in range(10)]

    overflows = ["stretch", "windows", "truncate"] * 2
    expected = [read(overflow) for overflow in overflows]
    with ThreadPoolExecutor(len(overflows)) as pool:
        found = list(pool.map(read, overflows))
    for states, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.stack(states), torch.stack(alone), atol=1e-5, rtol=0)
    assert pipe.text_encoder_2.text_model.embeddings.position_embedding is table


def row_everywhere(value, row: int, batch: int):
    """`value` with every entry of a batch's tensors replaced by that of `row`."""
    if isinstance(value, dict):
        return {key: row_everywhere(item, row, batch) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(row_everywhere(item, row, batch) for item in value)
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch:
        return value[row : row + 1].repeat(batch, *[1] * (value.ndim - 1))
    return value


def outputs_of(output) -> list[torch.Tensor]:
    """A network's output as a flat list: a UNet's sample, or a ControlNet's residuals."""
    return [part for entry in output for part in (entry if isinstance(entry, list | tuple) else [entry])]


def compare_with_rows_alone(network) -> list[int]:
    """Have calls of `network` be compared, row by row, with calls in which every row is that one, without its pads.

    Returns a list to which each comparison adds the count of its rows' tokens.
    """
    given, compared = [], []

    def keep(module, args, kwargs):
        given.append((args, row_everywhere(kwargs, 0, 0)))  # a UNet takes entries off a T2I-Adapter's list

    def compare(module, args, kwargs, output):
        args, kwargs = given.pop()
        states = kwargs["encoder_hidden_states"]
        if given or compared or states.shape[1] == 77:  # the calls below, or after the first
            return
        given.append(None)
        for row, visible in enumerate(attention.visible_tokens(states)):
            alone = row_everywhere(kwargs, row, len(states))
            alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, visible]
            found = outputs_of(network(*row_everywhere(args, row, len(states)), **alone))
            for ours, expected in zip(outputs_of(output), found, strict=True):
                torch.testing.assert_close(ours[row], expected[row], atol=1e-5, rtol=1e-4)
            compared.append(int(visible.sum()))
        given.clear()

    network.register_forward_pre_hook(keep, with_kwargs=True)
    network.register_forward_hook(compare, with_kwargs=True)
    return compared


@TASKS
@pytest.mark.parametrize("lengths", [(200, 20), (20, 160)], ids=["short negative", "long negative"])
def test_prompt_and_negative_of_other_lengths_are_each_as_without_pads(tulip_class, lengths):
    pipe = quiet(tulip_class(**components(tulip_class, text_encoder=tulip_encoder())))
    prompt, negative = (words(length, start) for start, length in enumerate(lengths))
    networks = [pipe.components[name] for name in ("unet", "controlnet") if name in pipe.components]
    compared = [compare_with_rows_alone(network) for network in networks]
    pipe(**inputs(tulip_class, prompt, negative_prompt=negative))
    for counts in compared:
        assert set(counts) == {max(length + 2, 77) for length in lengths}


@pytest.mark.parametrize(
    "prompt, options, masked",
    [
        (words(200), {}, False),
        ([words(200), words(200, 3)], {"negative_prompt": words(200, 5)}, False),
        (words(20), {"negative_prompt": words(40)}, False),
        (words(200), {"sequence_length": 248, "negative_prompt": "bad"}, False),
        (words(200), {"sequence_length": "bucket"}, True),
        (words(200), {"negative_prompt": "bad"}, True),
        ([words(200), words(20)], {}, True),
    ],
)
def test_a_mask_reaches_attention_only_where_lengths_differ(pipe, monkeypatch, prompt, options, masked):
    masks, made = masks_in(pipe), []
    visible = attention.visible_tokens
    monkeypatch.setattr(attention, "visible_tokens", lambda states: made.append(states) or visible(states))
    pipe(**inputs(type(pipe), prompt, num_inference_steps=4), **options)
    assert masks and {mask is not None for mask in masks} == {masked}
    assert len(made) <= 1, "a call makes its mask once"


def test_attention_scale_is_neutral_up_to_77_tokens(pipe):
    for scale in (1.5, "log"):
        short, long = (pipe(**inputs(type(pipe), words(n)), attention_scale=scale).images for n in (75, 200))
        assert np.array_equal(short, pipe(**inputs(type(pipe), words(75))).images)
        assert np.abs(long - pipe(**inputs(type(pipe), words(200))).images).max() > 1e-6
        both = pipe(**inputs(type(pipe), [words(75), words(200)]), attention_scale=scale).images
        np.testing.assert_allclose(both, np.concatenate([short, long]), atol=1e-4)


def test_losses_are_told_once_for_each_prompt_in_a_short_line(pipe, caplog):
    pipe.set_conditioning(overflow="truncate")
    prompt = f"{words(80)} a zebra"
    for _ in range(2):
        pipe.encode_prompt(prompt)
    (record,) = caplog.records
    first = prompt.split()[75]
    assert record.message == f'text_encoder_2: 7 tokens beyond 77 are lost, from "{first}" to "zebra".'
    pipe.encode_prompt(f"{words(300)} {'antidisestablishmentarianism' * 2}")
    message = caplog.records[1].message
    assert 'text_encoder: 68 tokens beyond 248 it was not trained on, from "river" to "antidisestablish".' in message
    assert len(message) <= 200 and "\n" not in message
    assert len(caplog.records) == 2
    pipe.encode_prompt(words(75))
    assert len(caplog.records) == 2


def test_network_tags_are_left_out_and_told_once(pipe, caplog):
    states = pipe.encode_prompt("a cat <lora:style:0.8>")[0]
    assert torch.equal(states, pipe.encode_prompt("a cat")[0])
    pipe.encode_prompt("a cat <lora:style:0.8>")
    (record,) = caplog.records
    assert record.message == "Left out <lora:style:0.8>: tags load nothing here, load_lora_weights does."
    assert not torch.equal(pipe.encode_prompt("a cat <3")[0], pipe.encode_prompt("a cat")[0])


BREAKS = [
    "a cat BREAK a dog on a boat",
    f"{words(72)} BREAK {words(90)}",
    f"{words(20)} Stop. BREAK (red BREAK boat:1.3)",
]


@pytest.mark.parametrize("prompt", BREAKS)
@pytest.mark.parametrize("first", [tulip_encoder, text_encoder], ids=["tulip", "clip"])
def test_what_stands_behind_a_break_is_read_on_its_own(first, prompt):
    """Each part has the states that it has as a prompt of its own, in both encoders; the last its pooled vector."""
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=first())
    pipe = StableDiffusionXLTulipPipeline(**parts, pooled="last")
    states, _, pooled, _ = pipe.encode_prompt(prompt)
    place = 1
    for part in prompt.replace("(red BREAK boat:1.3)", "(red:1.3) BREAK (boat:1.3)").split("BREAK"):
        alone, _, own_pooled, _ = pipe.encode_prompt(part)
        count = len(tokenize(part, pipe.tokenizer, "a1111").ids)
        torch.testing.assert_close(states[0, place : place + count], alone[0, 1 : 1 + count])
        place += count
    torch.testing.assert_close(pooled, own_pooled)
    assert (states[0] - pipe.encode_prompt(prompt.replace("BREAK", ""))[0][0]).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", ["BREAK a cat", "a cat BREAK", "BREAK BREAK"])
def test_a_break_with_nothing_on_one_side_changes_nothing(pipe, prompt):
    for ours, plain in zip(pipe.encode_prompt(prompt), pipe.encode_prompt(prompt.replace("BREAK", "")), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("overflow", ["windows", "stretch", "truncate"])
def test_breaks_do_not_depend_on_batch_mates(pipe, overflow):
    pipe.set_conditioning(overflow=overflow)
    prompts = [BREAKS[0], BREAKS[1], words(300), words(9)]
    together = pipe.encode_prompt(prompts)[0]
    for states, prompt in zip(together, prompts, strict=True):
        alone = pipe.encode_prompt(prompt)[0][0]
        torch.testing.assert_close(states[: len(alone)], alone)


@pytest.mark.parametrize(
    "prompt", [f"(a cat:1.2) BREAK {words(90)}", "wow!!! <lora:x:1> [dog]", f"f(x) {words(400)} (1:1)"]
)
def test_the_description_counts_what_is_encoded(pipe, prompt):
    report = pipe.describe_prompt(prompt)
    assert report.tokens == describe_prompt(prompt, load_tokenizer()).tokens
    with pipe.conditioned(sequence_length="exact"):
        assert max(report.tokens, 77) == pipe.encode_prompt(prompt)[0].shape[1]
    assert word_positions(prompt, pipe.tokenizer)[-1] == (prompt.split()[-1], report.tokens - 2)
