"""CLIP's tokeniser: words to the numbers that the published text encoders were trained on, from their own merges file.

It is byte-pair encoding over UTF-8. A text is cleaned, cut into words, and each word begins as its bytes, the last one
marked as the end of a word; then the neighbouring pair that stands highest in the list of merges is joined, again and
again, until none is left. Every byte is a token, so nothing is unknown. Ids follow from the list: the 256 bytes, the
256 bytes at the end of a word, one for each merge, the start mark, the end mark.

The list is no part of this package. It comes with the weights (`merges.txt`, and `vocab.json` which must agree with it)
or as OpenAI first published it (`bpe_simple_vocab_16e6.txt.gz`); all published CLIP models share it.
"""

from __future__ import annotations

import gzip
import html
import json
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from maquette.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
NUM_BASE = 512
"""Bytes, and bytes that end a word."""
NUM_MARKS = 2

PLACES = ("merges.txt", "tokenizer/merges.txt", "bpe_simple_vocab_16e6.txt.gz")
"""Where the list may lie in a folder of weights; the first that is there is taken."""

Padding = Literal["zero", "end"]
"""What fills a text up: id 0 (OpenCLIP, Stable Diffusion 2 and its kin) or the end mark (Stable Diffusion 1)."""

_SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@dataclass(frozen=True, eq=False)
class ClipTokenizer:
    """Texts -> token ids [B, length]: start mark, words, end mark, padding; what is too long is cut off."""

    ranks: Mapping[tuple[str, str], int]
    """Pair -> its place in the list of merges."""
    ids: Mapping[str, int]
    """Token -> id."""
    length: int = 77
    """Ids of every text, marks included."""
    padding: Padding = "zero"

    def __post_init__(self) -> None:
        if self.length < NUM_MARKS:
            raise ValueError(f"a tokenised text has room for its two marks, got length={self.length}")

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "b l"]:
        fill = 0 if self.padding == "zero" else self.ids[END]
        rows = []
        for text in texts:
            row = [self.ids[START], *self.encode(text)[: self.length - NUM_MARKS], self.ids[END]]
            rows.append(row + [fill] * (self.length - len(row)))
        return torch.tensor(rows, dtype=torch.long)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without marks and padding."""
        return [self.ids[token] for word in split_words(clean(text)) for token in self._tokens(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: words are separated by one space; marks and what stands behind the end mark are left out."""
        tokens = {index: token for token, index in self.ids.items()}
        text = ""
        for index in ids:
            if index == self.ids[END]:
                break
            text += "" if index == self.ids[START] else tokens[index]
        back = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        spaced = text.replace(WORD_END, " ")
        # A space is no symbol of a byte, so those that are here end words.
        data = b"".join(b" " if symbol == " " else bytes([back[symbol]]) for symbol in spaced)
        return data.decode("utf-8", errors="replace").strip()

    def fits(self, text: str) -> bool:
        """Whether no word of the text is cut off."""
        return len(self.encode(text)) <= self.length - NUM_MARKS

    def _tokens(self, word: str) -> list[str]:
        """The tokens of one word after all merges."""
        if word in (START, END):
            return [word]
        symbols = byte_symbols()
        parts = [symbols[byte] for byte in word.encode("utf-8")]
        parts[-1] += WORD_END
        while len(parts) > 1:
            best = min(zip(parts, parts[1:], strict=False), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            parts = _joined(parts, best)
        return parts


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with every occurrence of a pair, from left to right, made one."""
    joined: list[str] = []
    i = 0
    while i < len(parts):
        both = i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair
        joined.append(parts[i] + parts[i + 1] if both else parts[i])
        i += 2 if both else 1
    return joined


def clean(text: str) -> str:
    """Lower case, single spaces, HTML's entities resolved (twice, as in the training data)."""
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def split_words(text: str) -> Iterator[str]:
    """Runs of letters, single digits, English suffixes such as 's, the two marks, runs of anything else but space.

    >>> list(split_words("a robot's arm, 42!"))
    ['a', 'robot', "'s", 'arm', ',', '4', '2', '!']
    """
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        end = start + 1
        known = next((word for word in (START, END, *_SUFFIXES) if text.startswith(word, start)), None)
        if known is not None:
            end = start + len(known)
        elif kind in ("letter", "other"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[start:end]
        start = end


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "other")


@cache
def byte_symbols() -> tuple[str, ...]:
    """A printable character for each byte, in which the list of merges is written.

    Bytes that are printable in Latin-1 stand for themselves, the others take the characters from 256 on in turn.
    """
    shown = _printable()
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in shown else chr(next(others)) for byte in range(256))


def _printable() -> set[int]:
    return {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}


def base_tokens() -> list[str]:
    """The first 512 tokens in the order of their ids: printable bytes first, then the others, then all at a word's
    end.
    """
    symbols, shown = byte_symbols(), _printable()
    order = [symbols[byte] for byte in sorted(shown)] + [symbols[byte] for byte in range(256) if byte not in shown]
    return order + [symbol + WORD_END for symbol in order]


def find_merges(folder: Path) -> Path | None:
    """The list of merges in a folder of weights, or None."""
    return next((folder / place for place in PLACES if (folder / place).is_file()), None)


def read_tokenizer(path: Path, vocabulary: int, length: int = 77, padding: Padding = "zero") -> ClipTokenizer:
    """The tokeniser of a list of merges for a text encoder with `vocabulary` tokens.

    UserError naming the file where it is not such a list, is too short for the encoder, or where the `vocab.json`
    beside it gives other ids.
    """
    wanted = vocabulary - NUM_BASE - NUM_MARKS
    lines = _read_lines(path)
    if lines and (lines[0].startswith("#version") or "bpe_simple_vocab" in lines[0]):
        lines = lines[1:]
    # OpenAI's file goes on with merges that no model uses.
    pairs = [tuple(line.split()) for line in lines if line.strip()][:wanted]
    if len(pairs) != wanted:
        raise UserError(
            f"{path} has {len(pairs)} merges and the text encoder needs {wanted}; give the one of its own model"
        )
    ranks = {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs) if len(pair) == 2}
    if len(ranks) != len(pairs):
        raise UserError(f"{path} is not a list of merges: every line has two symbols, and no line comes twice")
    tokens = [*base_tokens(), *("".join(pair) for pair in pairs), START, END]
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise UserError(f"{path} is not a list of merges: two of its lines make the same token")
    unknown = [pair for pair in ranks if pair[0] not in ids or pair[1] not in ids]
    if unknown:
        raise UserError(f"{path} is not a list of merges: it joins {unknown[0]}, which no line before it makes")
    _check_vocabulary(path.with_name("vocab.json"), ids)
    return ClipTokenizer(ranks, ids, length, padding)


def _read_lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"there is no list of merges at {path}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of merges ({error}); copy it again") from None


def _check_vocabulary(path: Path, ids: Mapping[str, int]) -> None:
    if not path.is_file():
        return
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a vocabulary: it cannot be read as JSON ({error})") from None
    if not isinstance(listed, dict) or dict(listed) != dict(ids):
        raise UserError(f"{path} does not belong to the list of merges beside it: they give tokens different ids")
