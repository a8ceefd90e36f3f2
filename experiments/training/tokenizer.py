"""Tokenizers over the offline world's own words, each of which is one token.

They are built directly, without a trainer, so that the vocabulary is the same in every process.
"""

from collections.abc import Iterable

import torch
from tokenizers import pre_tokenizers
from transformers import BertTokenizer, CLIPTokenizer

from context_diffusion.scenes import words

MAX_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def new_tokenizer(vocabulary: list[str] | None = None) -> CLIPTokenizer:
    """The byte-level BPE of ``tiny-scenes``: unlisted text falls to bytes; start is id 0, end and padding are id 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([START, END, *alphabet, *(a + "</w>" for a in alphabet)])}
    ranks: dict[tuple[str, str], int] = {}
    for word in sorted(set(vocabulary or words())):
        while len(pieces := _pieces(word, ranks)) > 1:  # merge the first two until the word is one token
            ranks[pieces[0], pieces[1]] = len(ranks)
            vocab.setdefault(pieces[0] + pieces[1], len(vocab))
    return CLIPTokenizer(
        vocab=vocab, merges=list(ranks), model_max_length=MAX_LENGTH, bos_token=START, eos_token=END, pad_token=END
    )


def _pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The word under the merges so far: always the pair of lowest rank first."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        rank, i = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(pieces, pieces[1:], strict=False)))
        if rank == len(ranks):
            break
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def word_tokenizer(vocabulary: Iterable[str], length: int, **options) -> BertTokenizer:
    """BERT's tokenizer over some words and the comma, up to ``length`` tokens; other words are ``[UNK]``."""
    vocab = {token: number for number, token in enumerate([*SPECIAL, ",", *vocabulary])}
    return BertTokenizer(vocab=vocab, model_max_length=length, **options)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Padded token ids, int64 (n, 32)."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
