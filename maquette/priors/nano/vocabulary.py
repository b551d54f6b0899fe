"""The words that the nano priors read: a fixed list, one index for ever.

`vocabulary.txt` holds one word a line and its line number is its index. It was fixed before the first training and
never changes order: four marks, eight placeholders for a personal subject (`[v]`, `[v2]` .. `[v8]`), view words,
colours, materials, states, object nouns, then every word of the training captions, and reserved lines at the end for
later words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import torch
from jaxtyping import Int
from torch import Tensor

PAD, START, END, UNKNOWN = 0, 1, 2, 3
MAX_TOKENS = 24
PLACEHOLDERS = ("[v]", *(f"[v{i}]" for i in range(2, 9)))

_WORD = re.compile(r"\[v\d?\]|[a-z0-9]+(?:'[a-z]+)?")


@cache
def vocabulary() -> dict[str, int]:
    """Word -> index, as shipped."""
    words = files(__package__).joinpath("vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1]
    return {word: index for index, word in enumerate(words)}


def split_words(text: str) -> list[str]:
    """Lower-case words and placeholders of a text; punctuation and hyphens only separate."""
    return _WORD.findall(text.lower())


def word_index(word: str) -> int:
    """The word's index; a plural is looked up by its singular when only that is known; else `UNKNOWN`."""
    words = vocabulary()
    for candidate in (word, word.removesuffix("s"), word.removesuffix("es")):
        if candidate in words:
            return words[candidate]
    return UNKNOWN


def unknown_words(text: str) -> list[str]:
    """Words of a caption that the nano priors cannot read, so that a caller can say so."""
    return [word for word in split_words(text) if word_index(word) == UNKNOWN]


def tokenize(texts: Sequence[str]) -> Int[Tensor, "b l"]:
    """Token indices [B, MAX_TOKENS]: start mark, words, end mark, padding. Words beyond the limit are cut off."""
    rows = []
    for text in texts:
        words = [word_index(word) for word in split_words(text)][: MAX_TOKENS - 2]
        row = [START, *words, END]
        rows.append(row + [PAD] * (MAX_TOKENS - len(row)))
    return torch.tensor(rows, dtype=torch.long)
