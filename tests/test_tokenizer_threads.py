import copy
import multiprocessing
import pickle
import threading

import pytest
from transformers import CLIPTokenizer

from tests.conftest import LONG_CAPTION
from tulip_diffusion import load_tokenizer
from tulip_diffusion.prompt_description import describe_prompt
from tulip_diffusion.tokenization import OpenClipTokenizer, thread_safe


def from_folder(tokenizer_class, tmp_path):
    load_tokenizer(77).save_pretrained(tmp_path)
    return tokenizer_class.from_pretrained(tmp_path)


MAKERS = {
    "load_tokenizer": lambda tmp_path: load_tokenizer(77),
    "load_tokenizer, cleaning": lambda tmp_path: load_tokenizer(77, clean=True),
    "a cleaning one from a folder": lambda tmp_path: from_folder(OpenClipTokenizer, tmp_path),
    "transformers' own": lambda tmp_path: thread_safe(from_folder(CLIPTokenizer, tmp_path)),
    "a copy": lambda tmp_path: copy.deepcopy(load_tokenizer(77)),
    "an unpickled one": lambda tmp_path: pickle.loads(pickle.dumps(load_tokenizer(77))),
}
CALLS = [  # as a pipeline, as a bar that counts tokens, as training, as a weighted prompt
    lambda tokenizer: tokenizer(LONG_CAPTION, padding="max_length", truncation=True, max_length=77).input_ids,
    lambda tokenizer: tokenizer(LONG_CAPTION, add_special_tokens=False, verbose=False).input_ids,
    lambda tokenizer: tokenizer(["a cat", LONG_CAPTION], padding=True).input_ids,
    lambda tokenizer: tokenizer("a <|endoftext|> cat", split_special_tokens=True, verbose=False).input_ids,
    lambda tokenizer: str(describe_prompt(LONG_CAPTION, tokenizer)),
]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_threads_that_share_a_tokenizer_get_what_each_gets_alone(make, tmp_path):
    tokenizer = make(tmp_path)
    expected = [call(tokenizer) for call in CALLS]
    wrong = []

    def work(number):
        try:
            wrong.extend(number for _ in range(40) if CALLS[number](tokenizer) != expected[number])
        except Exception as error:  # the backend may also refuse to be borrowed twice
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(CALLS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tokenizer_keeps_its_class_and_folder(tmp_path):
    tokenizer = load_tokenizer(77)
    assert type(tokenizer) is CLIPTokenizer
    tokenizer.save_pretrained(tmp_path)
    assert CLIPTokenizer.from_pretrained(tmp_path)(LONG_CAPTION).input_ids == tokenizer(LONG_CAPTION).input_ids


@pytest.mark.parametrize("clean", [False, True])
def test_a_spawned_process_tokenizes_with_what_was_passed_to_it(clean):
    tokenizer = load_tokenizer(77, clean=clean)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ids = pool.apply(ids_in_another_process, (tokenizer, "Fish &amp; chips!"))
    assert ids == tokenizer("Fish &amp; chips!").input_ids


def ids_in_another_process(tokenizer, text):
    return tokenizer(text).input_ids
