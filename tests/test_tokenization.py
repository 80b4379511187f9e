import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig

from tulip_diffusion import load_tokenizer
from tulip_diffusion.tokenization import OpenClipTokenizer, clean_text, tokenizer_of

REFERENCE = open_clip.get_tokenizer("ViT-L-14", context_length=400)
CLEANING = load_tokenizer(max_length=400, clean=True)
ODD = [
    "Hello, world! It's a cat's  1984 ok!!",
    "&amp;amp; &lt;b&gt; &#x1F600; &notit;",
    "cafÃ© naÃ¯ve",
    "ΣΑΣ Ὀδυσσεύς İstanbul ǅ ẞ ŉ K Å",
    "e\u0301a a\u0300\u0301 한국어 각",
    "👩‍👩‍👧‍👦 ok 🇩🇪 ﬁne ①②½",
    "\u200bzero\u200bwidth\ufeff x\u00a0y\u2003z",
    "tab\tnew\nline\x0b\x1c \x00null",
    "  ",
    "",
    "don't DON'T they'll I'D 'S 's ’s",
    "日本語テキスト नमस्ते ٣٤٥ १२",
    "a" * 300,
    "<|endoftext|> <|startoftext|> <end_of_text> <START_OF_TEXT> end",
]


def open_clip_ids(text):
    ids = REFERENCE([text])[0].tolist()
    return ids[: len(ids) - next(i for i, token in enumerate(reversed(ids)) if token == 49407)]


def cleaned_ids(text):
    return CLEANING(text, truncation=True).input_ids


@pytest.mark.parametrize("text", ODD)
def test_cleaned_ids_are_open_clips_on_odd_strings(text):
    assert cleaned_ids(text) == open_clip_ids(text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60))
def test_cleaned_ids_are_open_clips_on_any_string(text):
    assert cleaned_ids(text) == open_clip_ids(text)


def test_plain_ids_are_open_clips_on_plain_english():
    text = "A red tulip stands beside the old wooden boat, and it's raining; 42 cats watch."
    assert load_tokenizer(400)(text).input_ids == open_clip_ids(text)


@pytest.mark.parametrize(("pad_token", "pad_id"), [("<|endoftext|>", 49407), ("!", 0)])
@pytest.mark.parametrize("clean", [False, True])
def test_sdxls_two_pad_conventions(pad_token, pad_id, clean):
    tokenizer = load_tokenizer(77, pad_token=pad_token, clean=clean)
    ids = tokenizer("a cat", padding="max_length").input_ids
    assert ids == [49406, 320, 2368, 49407] + [pad_id] * 73


def test_an_exclamation_mark_keeps_its_id_beside_the_pad_of_the_same_name(tmp_path):
    """CLIPTokenizer, and so SDXL's second tokenizer, gives it the pad's id; the models were trained on 256."""
    tokenizer = load_tokenizer(77, pad_token="!", clean=True)
    assert tokenizer("hi!").input_ids == [49406, 1883, 256, 49407]
    tokenizer.save_pretrained(tmp_path)
    reloaded = OpenClipTokenizer.from_pretrained(tmp_path)
    assert reloaded("Hi &amp; bye!").input_ids == tokenizer("Hi &amp; bye!").input_ids
    assert (reloaded.pad_token_id, reloaded.model_max_length) == (0, 77)


def test_offsets_name_the_words():
    text = "a red tulip"
    offsets = load_tokenizer()(text, return_offsets_mapping=True).offset_mapping
    assert [text[start:end] for start, end in offsets] == ["", "a", "red", "tulip", ""]


def test_cleaning_keeps_plain_text():
    assert clean_text("  A  Red\ntulip ") == "a red tulip"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"max_length": 2}, "max_length must be 3 or more"), ({"pad_token": "[PAD]"}, r"got '\[PAD\]'")],
)
def test_wrong_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_tokenizer(**arguments)


def test_an_encoders_tokenizer_is_as_long_as_its_positions_and_clips_alone():
    lengths = [tokenizer_of(CLIPTextConfig(max_position_embeddings=rows)).model_max_length for rows in (16, 77, 248)]
    assert lengths == [77, 77, 248]
    assert tokenizer_of(CLIPTextConfig(vocab_size=600)) is None
