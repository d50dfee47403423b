"""The two vocabularies of the tokenizer and GGUF goldens, and what the reference tokenizers make of the probe strings.

`byte_level` is a GPT-2-style BPE of the `tokenizers` library, `piece` a real SentencePiece BPE with byte fallback, as
LLaMA 1 and 2 have. Both are trained here, on golden_text.STORIES, and have SIZE tokens.
"""

import io
import json
from types import SimpleNamespace

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import LlamaConverter, generate_merges

import golden_common as common
import golden_text

SIZE = 320
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = "<speaker>"


def pre_tokenizer(kind: str):
    """"gpt-2" keeps runs of digits, "smollm" splits every digit off first: llama.cpp's names for the two."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind == "gpt-2":
        return byte_level
    assert kind == "smollm"
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def byte_level(kind: str) -> Tokenizer:
    """Same tokens and merges for both kinds; the merges contain numbers, which only "gpt-2" can use."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer("gpt-2")
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 1, show_progress=False, special_tokens=CONTROL,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    text = [s.replace("95 degrees", "100 degrees") + " 2019 2019 100 100 2019 100 2019 100 20 200" * 3 for s in golden_text.STORIES]
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens([AddedToken(USER_DEFINED, normalized=False)])
    tokenizer.pre_tokenizer = pre_tokenizer(kind)
    tokenizer.decoder = decoders.ByteLevel()
    assert tokenizer.get_vocab_size() == SIZE
    return tokenizer


def piece_model() -> bytes:
    """SentencePiece's own bytes: LLaMA's training settings (identity normaliser, split digits, byte fallback)."""
    out = io.BytesIO()
    lines = [line for story in golden_text.STORIES for line in story.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="bpe", vocab_size=SIZE, byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, allow_whitespace_only_pieces=True,
        character_coverage=0.995, num_threads=1, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2)
    return out.getvalue()


def pieces(model: bytes) -> list:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return list(proto.pieces)


def llama_tokenizer(model: bytes) -> Tokenizer:
    """tokenizer.json of a LLaMA 2 folder: what transformers' LlamaConverter builds in its legacy form."""
    listed = pieces(model)
    vocab = {p.piece: i for i, p in enumerate(listed)}
    merges = generate_merges(vocab, [(p.piece, p.score) for p in listed], {p.piece for p in listed if p.type != 1})
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer


def check_converter(ours: Tokenizer) -> None:
    """Normaliser, pre-tokenizer and decoder must be those of transformers' own converter in its legacy form."""
    converter = LlamaConverter.__new__(LlamaConverter)  # its constructor wants a tokenizer.model file on disk
    converter.original_tokenizer = SimpleNamespace(legacy=True, add_prefix_space=True)
    theirs = Tokenizer(models.BPE())
    theirs.normalizer, theirs.decoder = converter.normalizer(None), converter.decoder("▁", True)
    assert converter.pre_tokenizer("▁", True) is None
    a, b = json.loads(ours.to_str()), json.loads(theirs.to_str())
    for key in ("normalizer", "pre_tokenizer", "decoder"):
        assert a[key] == b[key], f"{key}: {a[key]} against the converter's {b[key]}"


def piece_expectations(model: bytes) -> list:
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [{"text": t, "ids": sp.encode(t), "ids_with_bos": [sp.bos_id(), *sp.encode(t)]} for t in golden_text.PROBES]


def byte_level_expectations(tokenizer: Tokenizer) -> list:
    """Control and user-defined tokens are found in the text, as llama.cpp and transformers do when they parse specials."""
    special = ["<|im_start|>Lena\nhello<|im_end|>", "a<speaker>b <speaker> c", "<|endoftext|><|endoftext|>", "<|im_start", " <|im_end|> x"]
    return [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False).ids} for t in [*golden_text.PROBES, *special]]


def check_equal_to_sentencepiece(model: bytes, tokenizer: Tokenizer) -> None:
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = golden_text.PROBES + golden_text.STORIES + golden_text.random_strings(5000, 7)
    different = [t for t in texts if tokenizer.encode(t, add_special_tokens=False).ids != sp.encode(t)]
    assert not different, f"{len(different)} of {len(texts)} strings differ from SentencePiece's ids, the first: {different[0]!r}"


TOKENIZER_CONFIG = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None,
    "clean_up_tokenization_spaces": False, "legacy": True, "model_max_length": 1000000000000000019884624838656,
    "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
}


def make_tokenizer() -> None:
    path, model = common.fresh("llama_tokenizer"), piece_model()
    tokenizer = llama_tokenizer(model)
    check_converter(tokenizer)
    check_equal_to_sentencepiece(model, tokenizer)
    tokenizer.save(str(path / "tokenizer.json"))
    common.write_json(path / "tokenizer_config.json", TOKENIZER_CONFIG)
    common.write_json(path / "expected.json", piece_expectations(model))
    print(f"llama_tokenizer {SIZE} tokens, {len(golden_text.PROBES)} strings, equal to SentencePiece")
