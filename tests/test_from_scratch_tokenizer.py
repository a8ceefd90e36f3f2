import json
import random
import unicodedata
import warnings

import jaxtyping
import pytest
import torch
import transformers
from from_scratch_folders import LAYOUTS, folder
from tiny import WORDS, tiny_tokenizer

from context_diffusion.from_scratch import Tokenizer

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZÄÖÜßẞİıΣσς", "0123456789²½٣Ⅷ", "'\"!?.,;:-_()[]{}<>|/\\@#$%^&*~`",
    " \t\n\r\u00a0\u2003\u3000\x85\x1c", "éèñçåøœæÅé", "дом и кошка", "家と猫日本語", "بيت قطة", "घर बिल्ली",
    "บ้านแมว", "한국어", "🚀🌈👩\u200d🚀🏳️", "\u200b\ufeff\u0301\x00\x07",
]  # fmt: skip
FIXED = [
    "", " ", "!", "!!", "a", "A boat's sails, I'll say; we've 12 o'clock 'tis", "don't can't they're I'm he'd 'S 'RE",
    "<|startoftext|> a cat <|endoftext|>", "a<|endoftext|>b", "<|endoftext", "a " * 200, "boat" * 80, "ab" * 300,
    "e\u0301 = é", "ΟΔΟΣ ΣΑΣ", "x²+y²=½", "3.14159 2,000,000", "\n\n line \t tab ", "snake_case camelCase kebab-case",
]  # fmt: skip


def strings() -> list[str]:
    """500 strings: fixed ones, captions, and any mixture of alphabets, short and far too long."""
    rng = random.Random(0)
    texts = list(FIXED)
    while len(texts) < 200:
        words = [rng.choice([word, word.upper(), word.title()]) for word in rng.choices(WORDS, k=rng.randint(1, 25))]
        texts.append(rng.choice([" ", ", ", "  "]).join(words))
    while len(texts) < 500:
        letters = "".join(rng.sample(ALPHABETS, k=rng.randint(1, 4)))
        texts.append("".join(rng.choices(letters, k=rng.randint(0, 60))))
    return texts


def assert_same_ids(mine: Tokenizer, theirs) -> None:
    texts = strings()
    assert len(texts) == 500
    length = theirs.model_max_length
    expected = theirs(texts, padding="max_length", truncation=True, max_length=length).input_ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ids = mine(texts).tolist()
    wrong = [text for text, a, b in zip(texts, ids, expected, strict=True) if a != b]
    assert not wrong


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_ids_as_transformers(layout):
    path = folder(layout) / "tokenizer"
    assert_same_ids(Tokenizer.from_pretrained(path), transformers.CLIPTokenizer.from_pretrained(path))


def test_same_ids_from_vocabulary_and_merges(tmp_path):
    """The older layout, with '!' as padding only in special_tokens_map.json, as SD 2 is published."""
    tiny = tiny_tokenizer()
    model = json.loads(tiny.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    special = {"bos_token": {"content": "<|startoftext|>"}, "eos_token": "<|endoftext|>", "pad_token": "!"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"model_max_length": 20, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    mine = Tokenizer.from_pretrained(tmp_path)
    assert mine.padding == "!" and mine.max_length == 20
    theirs = transformers.CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=20, pad_token="!"
    )
    assert_same_ids(mine, theirs)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(folder("sd1") / "tokenizer")


def test_decoding_undoes_encoding(tokenizer):
    for text in strings():
        plain = tokenizer._specials.sub("", "".join(c.lower() for c in unicodedata.normalize("NFC", text)))
        squeezed = "".join(c for c in plain if not (unicodedata.category(c)[0] == "Z" or c in "\t\n\v\f\r\x85"))
        if "<|" not in text:
            assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == squeezed


def test_layout_of_a_row(tokenizer):
    row = tokenizer("a boat")[0].tolist()
    vocab = tokenizer.vocab
    assert row[:4] == [vocab["<|startoftext|>"], vocab["a</w>"], vocab["boat</w>"], vocab["<|endoftext|>"]]
    assert row[4:] == [vocab["<|endoftext|>"]] * (tokenizer.max_length - 4)
    assert tokenizer([]).shape == (0, tokenizer.max_length)


def test_merges_follow_their_order():
    """'abc' can merge ab first or bc first: the list decides, not the position."""
    vocab = {token: i for i, token in enumerate(["S", "a", "b", "c</w>", "ab", "bc</w>"])}
    special = {"start": "S", "end": "S", "padding": "S", "unknown": "S"}
    assert Tokenizer(vocab, [("a", "b"), ("b", "c</w>")], **special).pieces("abc") == ["ab", "c</w>"]
    assert Tokenizer(vocab, [("b", "c</w>"), ("a", "b")], **special).pieces("abc") == ["a", "bc</w>"]


def test_a_cut_prompt_is_announced(tokenizer):
    room = tokenizer.max_length - 2
    with pytest.warns(UserWarning, match=f"reads {room} tokens, this prompt has {room + 1}.*'sun'"):
        ids = tokenizer("boat " * room + "sun")
    assert ids.shape == (1, tokenizer.max_length) and ids[0, -1] == tokenizer.vocab[tokenizer.end]


def test_bad_input(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own sentence, not the type checker's
    with pytest.raises(TypeError, match="a string or a list of strings, not 3"):
        tokenizer(["a", 3])
    with pytest.raises(FileNotFoundError, match="holds neither"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it has no"):
        Tokenizer({"a": 0}, [])
    assert torch.equal(tokenizer("\ud800 boat"), tokenizer("? boat"))  # half a character
