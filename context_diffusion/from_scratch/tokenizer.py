"""From text to numbers: CLIP's byte-level byte-pair encoding.

The pair-merging loop is Algorithm 1 of Sennrich et al. 2016 run forwards; because it works on bytes instead of letters
(Radford et al. 2019, section 2.2), no text is ever unknown.

    "A boat!"  ->  words "a", "boat", "!"  ->  bytes as letters  ->  merged pieces "a</w>", "boat</w>", "!</w>"  ->  ids
"""

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..checks import LIMITS, check_list, shown
from ..signatures import checked
from .weights import read_json

END_OF_WORD = "</w>"

# Every byte gets a printable letter of its own: itself if it is printable, else the next free one after 255.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_TO_LETTER = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
LETTER_TO_BYTE = {letter: byte for byte, letter in BYTE_TO_LETTER.items()}

# An English ending, a run of letters, one digit, or a run of anything else but spaces; see `_outline` for the alphabet.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ a-z0-9]+")


def _outline(text: str) -> str:
    """The text with every non-ASCII character replaced by its kind: a letter, a digit, a space, or other."""
    kinds = {"L": "z", "N": "0", "Z": " "}
    controls = dict.fromkeys("\t\n\v\f\r\x85", " ")
    return "".join(controls.get(c) or (c if c.isascii() else kinds.get(unicodedata.category(c)[0], "#")) for c in text)


def split_words(text: str) -> list[str]:
    """The words of a text; byte pairs are merged within a word, never across.

    >>> split_words("A boat's 2 sails!")
    ['a', 'boat', "'s", '2', 'sails', '!']
    """
    text = "".join(c.lower() for c in unicodedata.normalize("NFC", text))
    return [text[match.start() : match.end()] for match in _WORD.finditer(_outline(text))]


def check_string(text: object) -> str:
    """Return a text as it is: half of a character is as good as an unknown one."""
    if not isinstance(text, str):
        raise TypeError(f"A prompt is a string or a list of strings, not {shown(text)}.")
    return text


class Tokenizer:
    """Text in, a fixed number of token ids out: start, the text's own tokens, end, padding.

    Arguments:
        vocab: the id of every token.
        merges: pairs of tokens, in the order in which they were learned, the most frequent first.
        max_length: tokens per text, start and end included (77 in Stable Diffusion).
        start, end, padding, unknown: the special tokens; each is recognised anywhere in a text.
    """

    @checked
    def __init__(
        self,
        vocab: dict,
        merges: Iterable[tuple[str, str]],
        *,
        max_length: int = 77,
        start: str = "<|startoftext|>",
        end: str = "<|endoftext|>",
        padding: str = "<|endoftext|>",
        unknown: str = "<|endoftext|>",
    ):
        if missing := [token for token in (start, end, padding, unknown) if token not in vocab]:
            raise ValueError(f"The vocabulary must hold every special token; it has no {missing}.")
        self.vocab, self.max_length = vocab, max_length
        self.rank = {tuple(pair): i for i, pair in enumerate(merges)}
        self.start, self.end, self.padding, self.unknown = start, end, padding, unknown
        specials = sorted({start, end, padding, unknown}, key=len, reverse=True)
        self._specials = re.compile("(" + "|".join(map(re.escape, specials)) + ")")
        self._token = {i: token for token, i in vocab.items()}

    @classmethod
    @checked
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """Read a tokenizer folder: either ``tokenizer.json`` or ``vocab.json`` with ``merges.txt``."""
        folder = Path(folder)
        settings: dict[str, Any] = {}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):  # the second file has the last word
            if (folder / name).exists():
                settings |= read_json(folder / name)
        if (folder / "tokenizer.json").exists():
            model = read_json(folder / "tokenizer.json").get("model")
            if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or "merges" not in model:
                raise ValueError(f"{folder / 'tokenizer.json'} holds no byte-pair encoding: no model.vocab and merges.")
            vocab, merges = model["vocab"], model["merges"]
        elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            vocab = read_json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text("utf-8").splitlines()
            merges = [line for line in lines if line.strip() and not line.startswith("#version")]
        else:
            raise FileNotFoundError(
                f"A tokenizer folder holds tokenizer.json, or vocab.json and merges.txt; {folder} holds neither."
            )
        try:
            halves = (merge.split() if isinstance(merge, str) else merge for merge in merges)
            pairs = [(first, second) for first, second in halves]
        except (TypeError, ValueError) as error:
            raise ValueError(f"Each merge of a tokenizer is a pair of tokens; those in {folder} are not.") from error
        names = {"start": "bos_token", "end": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
        special = {ours: settings[theirs] for ours, theirs in names.items() if settings.get(theirs)}
        special = {name: token["content"] if isinstance(token, dict) else token for name, token in special.items()}
        return cls(vocab, pairs, max_length=settings.get("model_max_length", 77), **special)

    def pieces(self, word: str) -> list[str]:
        """Merge the bytes of a word: again and again, everywhere, the pair of neighbours that was learned first."""
        if not check_string(word):
            return []
        letters = [BYTE_TO_LETTER[byte] for byte in word.encode("utf-8", errors="replace")]
        parts = [*letters[:-1], letters[-1] + END_OF_WORD]
        while len(parts) > 1:
            first = min(zip(parts, parts[1:], strict=False), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if first not in self.rank:
                break
            merged, i = [], 0
            while i < len(parts):
                width = 2 if tuple(parts[i : i + 2]) == first else 1
                merged.append("".join(parts[i : i + width]))
                i += width
            parts = merged
        return parts

    def tokens(self, text: str) -> list[str]:
        """The text's own tokens as strings, without start, end and padding."""
        tokens = []
        for part in self._specials.split(check_string(text)):
            if self._specials.fullmatch(part):
                tokens.append(part)
            else:
                tokens += [piece for word in split_words(part) for piece in self.pieces(word)]
        return tokens

    def encode(self, text: str) -> list[int]:
        """The text's own token ids, without start, end and padding; as many as the text needs."""
        return [self.vocab.get(token, self.vocab[self.unknown]) for token in self.tokens(text)]

    @checked
    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, without special tokens.

        The inverse of ``encode`` up to capital letters, the width of spaces, and spaces around punctuation.
        """
        ids = list(ids)
        if unknown := [i for i in ids if i not in self._token]:
            raise ValueError(f"The vocabulary has {len(self._token)} tokens; there is none of number {unknown[0]}.")
        tokens = [self._token[i] for i in ids]
        letters = "".join(token for token in tokens if not self._specials.fullmatch(token))
        words = letters.split(END_OF_WORD)
        return " ".join(bytes(LETTER_TO_BYTE[c] for c in word).decode("utf-8", "replace") for word in words).strip(" ")

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "batch tokens"]:
        """``max_length`` ids for each text; a longer text is cut, with a warning that shows what is lost."""
        texts = [texts] if isinstance(texts, str) else check_list("texts", texts, LIMITS["images"])
        rows, room = [], self.max_length - 2
        for text in texts:
            ids = self.encode(text)
            if len(ids) > room:
                warnings.warn(
                    f"The text encoder reads {room} tokens, this prompt has {len(ids)}: "
                    f"it will not see {self.decode(ids[room:])!r}.",
                    stacklevel=2,
                )
            row = [self.vocab[self.start], *ids[:room], self.vocab[self.end]]
            rows.append(row + [self.vocab[self.padding]] * (self.max_length - len(row)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.max_length)
