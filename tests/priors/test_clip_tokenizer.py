"""CLIP's tokeniser: the laws of byte-pair encoding on a tiny list of merges, a slow twin, and wrong files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maquette.errors import UserError
from maquette.priors.clip_tokenizer import (
    END,
    NUM_BASE,
    START,
    WORD_END,
    ClipTokenizer,
    base_tokens,
    byte_symbols,
    clean,
    find_merges,
    read_tokenizer,
    split_words,
)

MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "a t</w>", "h e</w>", "Ã ©</w>"]
"""Pairs that compete for one letter ("h" in "the", "a" in "cat"), of which the higher one wins; last, one letter of two
bytes."""
SIZE = NUM_BASE + len(MERGES) + 2


def write(folder: Path, merges=MERGES, name: str = "merges.txt", vocabulary: bool = False) -> Path:
    """A list of merges as published, and the vocabulary that belongs to it."""
    text = "\n".join(["#version: 0.2", *merges, ""])
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    if vocabulary:
        ids = {token: i for i, token in enumerate([*base_tokens(), *(m.replace(" ", "") for m in merges), START, END])}
        path.with_name("vocab.json").write_text(json.dumps(ids))
    return path


@pytest.fixture
def tokenizer(tmp_path) -> ClipTokenizer:
    return read_tokenizer(write(tmp_path), SIZE, length=8)


def tokens(tokenizer, text):
    names = {index: token for token, index in tokenizer.ids.items()}
    return [names[index] for index in tokenizer.encode(text)]


def test_merges_are_made_in_the_order_of_the_list(tokenizer):
    assert tokens(tokenizer, "the cat") == ["the" + WORD_END, "cat" + WORD_END]
    # "cat" inside a word ends differently: its t is not the end of one.
    assert tokens(tokenizer, "cats") == ["ca", "t", "s" + WORD_END]
    assert tokens(tokenizer, "at he") == ["at" + WORD_END, "he" + WORD_END]


def test_every_occurrence_of_a_pair_is_merged_at_once(tokenizer):
    assert tokens(tokenizer, "ththth") == ["th", "th", "t", "h" + WORD_END]


def test_letters_are_their_bytes(tokenizer):
    assert tokens(tokenizer, "é") == ["Ã©" + WORD_END]
    assert len(tokens(tokenizer, "龍")) == 3


def test_the_base_covers_every_byte_once():
    assert len(set(byte_symbols())) == 256 and len(set(base_tokens())) == NUM_BASE
    assert sorted(base_tokens()[:256]) == sorted(byte_symbols())
    assert not any(symbol.isspace() for symbol in byte_symbols())
    # Published ids: "!" is 0, "a" 64, and "a" at the end of a word 320.
    assert [base_tokens().index(token) for token in ("!", "a", "a</w>")] == [0, 64, 320]


def test_rows_have_marks_and_one_length(tokenizer):
    start, end = tokenizer.ids[START], tokenizer.ids[END]
    assert (start, end) == (SIZE - 2, SIZE - 1)  # the end mark has the largest id, by which encoders find it
    rows = tokenizer(["the", "", "the the the the the the the the"])
    the = tokenizer.ids["the</w>"]
    assert rows.tolist() == [
        [start, the, end, 0, 0, 0, 0, 0],
        [start, end, 0, 0, 0, 0, 0, 0],
        [start, *[the] * 6, end],
    ]
    assert tokenizer.fits("the the the the the the") and not tokenizer.fits("the the the the the the the")


def test_stable_diffusion_1_pads_with_its_end_mark(tmp_path):
    tokenizer = read_tokenizer(write(tmp_path), SIZE, length=4, padding="end")
    start, end = tokenizer.ids[START], tokenizer.ids[END]
    assert tokenizer([""]).tolist() == [[start, end, end, end]]
    with pytest.raises(ValueError, match="length=1"):
        ClipTokenizer(tokenizer.ranks, tokenizer.ids, length=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's  A\tTest", ["it", "'s", "a", "test"]),
        ("we'll they're o'clock", ["we", "'ll", "they", "'re", "o", "'", "clock"]),
        ("x²+3.14", ["x", "²", "+", "3", ".", "1", "4"]),
        ("!'s", ["!'", "s"]),
        ("<|endoftext|>end", ["<|endoftext|>", "end"]),
        ("Tom &amp;amp; Jerry", ["tom", "&", "jerry"]),
        ("naïve 日本 👍", ["naïve", "日本", "👍"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert list(split_words(clean(text))) == words


@given(st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_and_nothing_unknown(tiny, text):
    """Decoding gives the words back, whatever the characters; a merge never crosses a word."""
    words = list(split_words(clean(text)))
    if START in words or END in words:
        return
    assert tiny.decode(tiny.encode(text)) == " ".join(words).encode("utf-8", "replace").decode()
    assert len(tiny.encode(text)) >= len(words)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return read_tokenizer(write(tmp_path_factory.mktemp("tiny")), SIZE)


@given(st.text("thecas", min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_against_a_slow_twin(tiny, word):
    """Apply the list from its top, each merge wherever it fits, starting over after each."""
    parts = [*word[:-1], word[-1] + WORD_END]
    changed = True
    while changed:
        changed = False
        for line in MERGES:
            left, right = line.split()
            for i in range(len(parts) - 1):
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i : i + 2] = [left + right]
                    changed = True
                    break
            if changed:
                break
    assert tokens(tiny, word) == parts


def test_all_published_forms_of_the_list_are_the_same(tmp_path):
    plain = read_tokenizer(write(tmp_path / "a", vocabulary=True), SIZE)
    packed = write(tmp_path / "b", [*MERGES, "z z", "zz z"], "bpe_simple_vocab_16e6.txt.gz")
    assert read_tokenizer(packed, SIZE).ids == plain.ids  # with merges beyond those that the model has
    assert find_merges(tmp_path / "a").name == "merges.txt" and find_merges(tmp_path / "b") == packed
    inside = write(tmp_path / "c", name="tokenizer/merges.txt")
    assert find_merges(tmp_path / "c") == inside and find_merges(tmp_path) is None


def test_wrong_files_are_named(tmp_path):
    path = write(tmp_path, vocabulary=True)
    with pytest.raises(UserError, match=r"merges\.txt has 7 merges and the text encoder needs 48894"):
        read_tokenizer(path, 49408)
    with pytest.raises(UserError, match=r"no list of merges at .*absent"):
        read_tokenizer(tmp_path / "absent", SIZE)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"vocab\.json does not belong to the list"):
        read_tokenizer(path, SIZE)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(UserError, match=r"vocab\.json is not a vocabulary"):
        read_tokenizer(path, SIZE)
    (tmp_path / "vocab.json").unlink()

    def refused(merges, match):
        with pytest.raises(UserError, match=match):
            read_tokenizer(write(tmp_path, merges), NUM_BASE + len(merges) + 2)

    refused(["t h", "t h"], "no line comes twice")
    refused(["t h e"], "every line has two symbols")
    refused(["t h", "th e", "h e", "t he"], "the same token")
    refused(["q u", "quo k"], r"joins \('quo', 'k'\)")
    path.write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(UserError, match=r"cannot be read as a list of merges"):
        read_tokenizer(path, SIZE)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"cannot be read as a list of merges"):
        read_tokenizer(path, SIZE)


def test_transformers_agrees(tmp_path):
    """An independent check, where that library is installed."""
    transformers = pytest.importorskip("transformers", reason="the extra `published` brings transformers")
    write(tmp_path, vocabulary=True)
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    ours = read_tokenizer(tmp_path / "merges.txt", SIZE, length=16)
    for text in ("the cat sat", "It's 42!", "naïve é  THE", "a red, round ball"):
        # Padding is left out: a "!" that pads, as in Stable Diffusion 2's files, is taken for one in the text there.
        row = theirs(text)["input_ids"]
        assert ours([text])[0, : len(row)].tolist() == row, text
