"""A CLIP tokenizer from a list of words, the same in every process."""

from collections.abc import Iterable

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

_TEXT = """a an the of in on and with among under by house tree boat car fish flower mushroom rocket cup
umbrella cat balloon red blue green plain field hills sea sun style flat line art watercolor halftone hatching
mosaic pixel neon crayon blueprint warm cool pastel earth vivid mono picture photo"""
WORDS = tuple(_TEXT.split())


def _bpe_merges(words: Iterable[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Merges that make every word one token, in a fixed order; the new tokens are added to ``vocab``."""
    merges, rank = [], {}

    def pieces(word: str) -> list[str]:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            known = [(rank[pair], i) for i, pair in enumerate(pairs) if pair in rank]
            if not known:
                break
            _, i = min(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts

    for word in sorted(set(words)):
        while len(parts := pieces(word)) > 1:
            rank[(parts[0], parts[1])] = len(merges)
            merges.append((parts[0], parts[1]))
            vocab.setdefault(parts[0] + parts[1], len(vocab))
    return merges


def tiny_tokenizer(words: Iterable[str] = WORDS, max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the list is one token; the same ids in every process."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = _bpe_merges(words, vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)
