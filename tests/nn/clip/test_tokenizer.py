"""Prompts to ids from files in the published layout, without the network."""

import json
import socket
import threading

import numpy as np
import pytest
from transformers import CLIPTokenizer

from optdiff.learning.clip import padded
from optdiff.nn.clip.tokenizer import load_tokenizer, tokenize

MERGES = ["c a", "ca t</w>", "d o", "do g</w>"]
BOS, EOS = 516, 517
A, CAT, DOG, BANG = 320, 513, 515, 256  # "a", "cat", "dog" and "!" as whole words


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes with, "!" first, as in CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]
    return [chr(c) for c in printable + others]


def write(folder, **config):
    words = [merge.replace(" ", "") for merge in MERGES]
    letters = byte_letters()
    vocab = [*letters, *(c + "</w>" for c in letters), *words, "<|startoftext|>", "<|endoftext|>"]
    folder.joinpath("vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocab)}))
    folder.joinpath("merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **config}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_ids_are_start_words_end_and_padding(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, pad_token="<|endoftext|>"))
    ids = tokenize(tokenizer, ["A cat!", "dog"], length=7)
    assert ids.dtype == np.int32
    expected = [[BOS, A, CAT, BANG, EOS, EOS, EOS], [BOS, DOG, EOS, EOS, EOS, EOS, EOS]]
    np.testing.assert_array_equal(ids, expected)
    assert tokenize(tokenizer, "dog").shape == (1, 77)
    assert tokenize(tokenizer, "")[0, :2].tolist() == [BOS, EOS]


def test_padding_comes_from_the_files(tmp_path):
    # SDXL's second tokenizer: "!", id 0.
    tokenizer = load_tokenizer(write(tmp_path, pad_token="!"))
    assert tokenize(tokenizer, "dog", length=5).tolist() == [[BOS, DOG, EOS, 0, 0]]


def test_what_does_not_fit_is_cut_and_said(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path))
    with pytest.warns(UserWarning, match="7 tokens, 5 fit: 'cat dog' was cut off 'a dog cat"):
        ids = tokenize(tokenizer, ["dog", "a dog cat cat dog"], length=5)
    np.testing.assert_array_equal(ids, [[BOS, DOG, EOS, EOS, EOS], [BOS, A, DOG, CAT, EOS]])


def test_a_prompt_that_just_fits_is_not_warned_about(tmp_path, recwarn):
    tokenizer = load_tokenizer(write(tmp_path))
    assert tokenize(tokenizer, "a dog cat", length=5).tolist() == [[BOS, A, DOG, CAT, EOS]]
    assert not recwarn.list


def test_reads_what_transformers_writes(tmp_path):
    first = load_tokenizer(write(tmp_path, pad_token="!"))
    first.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    prompt = "a cat, dog"
    np.testing.assert_array_equal(tokenize(again, prompt), tokenize(first, prompt))
    straight = CLIPTokenizer.from_pretrained(tmp_path)
    theirs = straight(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    np.testing.assert_array_equal(tokenize(first, prompt)[0], theirs)


def test_a_thread_that_reads_ahead_is_not_disturbed_by_other_uses(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path))
    texts = ["a cat", "dog dog a cat dog", "a"]
    theirs = tokenizer(texts, padding="max_length", truncation=True, max_length=5).input_ids
    ahead = padded(tokenizer, 5)
    tokenizer(texts)  # transformers leaves it without padding
    np.testing.assert_array_equal(ahead(texts), theirs)
    broken, ended = [], threading.Event()

    def read():
        while not ended.is_set():
            try:
                np.testing.assert_array_equal(ahead(texts), theirs)
            except Exception as error:
                broken.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(200):
        tokenize(tokenizer, "a cat", length=7)
        tokenizer(texts, padding=True)
    ended.set()
    thread.join()
    assert not broken
    np.testing.assert_array_equal(tokenize(tokenizer, texts[0], length=5), theirs[:1])


def test_missing_vocabulary_is_an_error_not_an_empty_tokenizer(tmp_path):
    write(tmp_path).joinpath("merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="T5Tokenizer"):
        load_tokenizer(write(tmp_path, tokenizer_class="T5Tokenizer"))


DAMAGE = {
    "tokenizer_config.json": [
        *("[]", "{", '{"a":' * 100_000, '{"pad_token": 7}', '{"pad_token": null}'),
        *('{"model_max_length": "77"}', '{"padding_side": "left"}', '{"truncation_side": "left"}'),
        *('{"added_tokens_decoder": {"5": {"content": 7}}}', '{"added_tokens_decoder": [1]}'),
    ],
    "special_tokens_map.json": ["[]", '{"pad_token": 7}', '{"pad_token": {"content": 7}}'],
    "added_tokens.json": ["[1]"],
    "vocab.json": [
        "[]",
        "{}",
        "",
        "\xff\xfe\0",
        *(f'{{"a": {i}}}' for i in ('"1"', -1, 1.5, 2**40)),
    ],
    "merges.txt": ["#version: 0.2\nabc", "#version: 0.2\na b c", "q zz", "\xff\xfe\0\1"],
    "tokenizer.json": ["[]", "{}", "{", '{"model": null}'],
}


@pytest.mark.parametrize(
    ("file", "content"), [(file, text) for file, texts in DAMAGE.items() for text in texts]
)
def test_a_damaged_file_is_one_line_that_names_the_folder(file, content, tmp_path):
    write(tmp_path)
    if file == "tokenizer.json":
        (tmp_path / "vocab.json").unlink()
    (tmp_path / file).write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_two_words_with_one_id_are_refused(tmp_path):
    write(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"!": 5}))
    with pytest.raises(ValueError, match=r"vocab\.json: ids must be different"):
        load_tokenizer(tmp_path)
