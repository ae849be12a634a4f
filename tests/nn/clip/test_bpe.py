"""A tokenizer learnt from captions: complete, deterministic, and read alike by all its readers."""

import dataclasses
import json
import random
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from optdiff.nn.clip.bpe import SMALLEST, byte_letters, train_tokenizer
from optdiff.nn.clip.tokenizer import load_tokenizer, save_tokenizer, tokenize

TEXTS = 3 * [
    "a small red seven on white",
    "a photo of a blue 3, bottom left",
    "two and two is four",
    "Deux et deux font quatre, même en été",
    "семь",
]
STRANGE = [
    "",
    "  a   RED\tseven ",
    "naïve café",
    "e\u0301te\u0301",
    "数字の七",
    "🙂🙃 7!",
    "\x00\x07\x7f",
    "seventh don't we'll",
    "½ ٣ Ⅷ",
    "".join(map(chr, range(1, 0x250))),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, length=32)


def test_the_files_are_those_of_clip(tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    vocab = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    letters = byte_letters()
    merges = (tmp_path / "merges.txt").read_text("utf-8").splitlines()
    assert merges[0].startswith("#version") and len(merges) > 1
    merged = dict.fromkeys(merge.replace(" ", "") for merge in merges[1:])
    ends = ["<|startoftext|>", "<|endoftext|>"]
    assert list(vocab) == [*letters, *(letter + "</w>" for letter in letters), *merged, *ends]
    assert list(vocab.values()) == list(range(len(tokenizer)))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert config["model_max_length"] == 32 and config["tokenizer_class"] == "CLIPTokenizer"
    assert config["pad_token"] == "<|endoftext|>"
    assert str(tmp_path) not in "".join(file.read_text("utf-8") for file in tmp_path.iterdir())


@pytest.mark.parametrize("kept", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_what_is_read_gives_the_same_ids(tokenizer, kept, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    for file in tmp_path.iterdir():
        if file.name not in (*kept, "tokenizer_config.json"):
            file.unlink()
    prompts = [*TEXTS[:5], *STRANGE[:-1]]
    ids = tokenize(tokenizer, prompts, length=64)
    np.testing.assert_array_equal(tokenize(load_tokenizer(tmp_path), prompts, length=64), ids)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 32 and len(theirs) == len(tokenizer)
    padded = theirs(prompts, padding="max_length", max_length=64, truncation=True).input_ids
    np.testing.assert_array_equal(padded, ids)


def test_any_text_has_ids_and_comes_back(tokenizer):
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    for text in [*TEXTS[:5], *STRANGE]:
        ids = tokenizer(text, verbose=False).input_ids
        # The token for the unknown is the end token, so what was not known would end a prompt.
        assert ids[0] == start and ids[-1] == end and all(0 <= i < start for i in ids[1:-1])
    for text in ["a small red seven on white", "même café", "数字の七", "🙂🙃"]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_same_texts_give_the_same_tokenizer_in_any_order(tokenizer):
    for seed in range(3):
        texts = random.Random(seed).sample(TEXTS, len(TEXTS))
        again = train_tokenizer(iter(texts), length=32)
        assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_the_most_frequent_pair_is_merged_first():
    # x y comes 5 times; then xy z</w> 3 times, against 2 of xy a</w> and one of q a</w>.
    tokenizer = train_tokenizer(["xyz"] * 3 + ["xya"] * 2 + ["qa"], vocab_size=SMALLEST + 2)
    assert tokenizer.tokenize("xyz xya qa") == ["xyz</w>", "xy", "a</w>", "q", "a</w>"]


def test_words_of_the_texts_become_one_token_and_no_room_is_wasted(tokenizer):
    assert all(
        len(tokenizer.tokenize(word)) == 1 for text in TEXTS for word in re.findall(r"\w+", text)
    )
    assert len(tokenizer) < 1024  # the most it might have had
    small = train_tokenizer(TEXTS, vocab_size=SMALLEST + 5)
    assert len(small) == SMALLEST + 5
    bytes_only = train_tokenizer(TEXTS, vocab_size=SMALLEST)
    assert bytes_only.tokenize("red") == ["r", "e", "d</w>"]


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(ValueError, match="vocab_size=300: at least 514"):
        train_tokenizer(TEXTS, vocab_size=300)
    with pytest.raises(ValueError, match="nothing to learn"):
        train_tokenizer([])


@pytest.mark.slow
def test_diffusers_reads_it_from_a_saved_pipeline(tokenizer, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from diffusers import StableDiffusionPipeline
    from stable_diffusion_folder import write

    from optdiff.nn.checkpoint import load, save
    from optdiff.nn.clip.tokenizer import load_tokenizer

    pipeline = load(write(tmp_path / "theirs", "sd15"))
    save(tmp_path / "ours", dataclasses.replace(pipeline, tokenizers=(tokenizer,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "ours").tokenizer
    padded = theirs(TEXTS, padding="max_length", truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(padded, tokenize(tokenizer, TEXTS, length=32))
    # Its encoder knows fewer words than this tokenizer, which `load` refuses.
    ours = load_tokenizer(tmp_path / "ours/tokenizer")
    np.testing.assert_array_equal(tokenize(ours, TEXTS, length=32), padded)
