"""Replies: the bytes of tokens, of which several may make one character."""

from __future__ import annotations

from parts.small import make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pave.serving.replies import bytes_of

TEXT = "né 日本 👍🏽"


def test_the_bytes_of_tokens_are_those_of_the_text():
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT).input_ids
    parts = [bytes_of(tokenizer, id, str(tokenizer.decode([id]))) for id in ids]
    assert bytes(byte for part in parts for byte in part or ()).decode() == TEXT
    assert any(part and part[0] >= 128 and len(part) == 1 for part in parts), "parts of characters"


def test_so_are_those_of_a_vocabulary_that_falls_back_to_bytes():
    names = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"a": 256, "<unk>": 257, "\ufffd\u4e16": 258}
    core = Tokenizer(models.BPE(vocab=names, merges=[], byte_fallback=True, unk_token="<unk>"))
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    ids = tokenizer("a本").input_ids
    parts = [bytes_of(tokenizer, id, str(tokenizer.decode([id]))) for id in ids]
    assert parts == [[97], *([byte] for byte in "本".encode())]
    assert bytes_of(tokenizer, 258, "\ufffd\u4e16") is None, "which of its bytes are meant is not known"
