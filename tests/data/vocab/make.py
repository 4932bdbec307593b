"""Writes small vocabularies of each kind as GGUF files, and the token ids of some texts in them.

  pip install gguf protobuf sentencepiece tokenizers
  python tests/data/vocab/make.py

The ids come from the libraries that trained the vocabularies, not from this program.
"""
import io, json, pathlib
import gguf, sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
CORPUS = [line for name in ("README.md", "OPTIMIZATIONS.md") for line in (ROOT / name).read_text().splitlines()]
TEXTS = [
    "", " a", "a", "  a  b ", "Hello, world!", "the models of the server", "naïve café 🙂", "\n\n", "\t\tx",
    "don't WE'LL", "1234567 3.14", "日本語", "a\r\n b", "x" * 40, "<s>", "</s>x", "<|im_end|>", "▁a", "[CLS] tests [SEP]",
    "fn main() { println!(\"{}\", 3); }", "snake_case-and.dots", "½ ² €5 $5", "ünïcödé", "ﬁve Ａ\u00a0b",
]
SPECIAL = {"<s>", "</s>", "<unk>", "<|im_end|>", "[CLS]", "[SEP]", "[UNK]", "[PAD]"}
LLAMA3 = (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def write(name, model, tokens, types, cases, **keys):
    path = HERE / f"{name}.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(name)
    w.add_tokenizer_model(model)
    w.add_token_list(tokens)
    w.add_token_types(types)
    for key, value in keys.items():
        getattr(w, f"add_{key}")(value)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.close()
    return cases


def cases(encode, known):
    # Texts that contain special tokens are left out: how to read those is up to the program, not the libraries.
    plain = [t for t in TEXTS if not any(s in t for s in SPECIAL & known)]
    return [{"text": t, "parse_special": special, "ids": encode(t)} for t in plain for special in (False, True)]


def sentence_piece(name, kind, model):
    out = io.BytesIO()
    # A few of Unicode's compatibility forms; all of them would take 240 KB.
    rules = HERE / "rules.tsv"
    forms = {"½": "1⁄2", "²": "2", "ﬁ": "fi", "Ａ": "A", "\u00a0": " ", "\t": " ", "\n": " ", "\r": " "}
    rules.write_text("".join(f"{ord(k):X}\t{' '.join(f'{ord(c):X}' for c in v)}\n" for k, v in forms.items()))
    rule = dict(normalization_rule_name="identity") if kind == "bpe" else dict(normalization_rule_tsv=str(rules))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, model_type=kind, vocab_size=500 if kind == "bpe" else 300,
        byte_fallback=kind == "bpe", remove_extra_whitespaces=kind != "bpe", character_coverage=0.995,
        minloglevel=2, **rule)
    rules.unlink()
    sp = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    tokens = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    types = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(len(tokens))]
    keys = dict(token_scores=[sp.get_score(i) for i in range(len(tokens))], unk_token_id=0, bos_token_id=1, eos_token_id=2)
    if kind == "unigram":
        from sentencepiece import sentencepiece_model_pb2 as pb
        proto = pb.ModelProto(); proto.ParseFromString(out.getvalue())
        keys |= dict(precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap, remove_extra_whitespaces=True,
                     add_space_prefix=True)
    return write(name, model, tokens, types, cases(lambda t: sp.encode(t), set(tokens)), **keys)


def byte_level():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    state = json.loads(t.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get) + ["<|im_end|>"]
    merges = [" ".join(m) for m in state["merges"]]
    return write("byte-level", "gpt2", tokens, [1] * (len(tokens) - 1) + [3], cases(lambda x: t.encode(x).ids, set(tokens)),
                 tokenizer_pre="llama-bpe", token_merges=merges, eos_token_id=len(tokens) - 1)


def character_level():
    # Gemma 4's: merges of characters, spaces as "▁", bytes for what has no token.
    trained = Tokenizer(models.BPE())
    space = normalizers.Replace(" ", "▁")
    trained.normalizer = space
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, limit_alphabet=80))
    state = json.loads(trained.to_str())["model"]
    tokens = special + byte_tokens + ["\n", "\n\n"] + sorted(state["vocab"], key=state["vocab"].get)
    merges = [("\n", "\n")] + [tuple(m) for m in state["merges"]]
    t = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(tokens)}, merges=merges, unk_token="<unk>", fuse_unk=True,
                             byte_fallback=True))
    t.normalizer = space
    types = [2 if x == "<unk>" else 3 if x in special else 6 if x in byte_tokens else 1 for x in tokens]
    return write("character-level", "gemma4", tokens, types, cases(lambda x: t.encode(x).ids, set(tokens)),
                 token_merges=[" ".join(m) for m in merges], bos_token_id=2, eos_token_id=1, unk_token_id=3)


def word_piece():
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer()
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    t.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    vocab = sorted(t.get_vocab(), key=t.get_vocab().get)
    tokens = [x if x in special else x[2:] if x.startswith("##") else "▁" + x for x in vocab]
    types = [3 if x in special else 1 for x in vocab]
    return write("word-piece", "bert", tokens, types, cases(lambda x: t.encode(x, add_special_tokens=False).ids, set(tokens)),
                 unk_token_id=1, bos_token_id=2, sep_token_id=3)


json.dump({"sentence-piece": sentence_piece("sentence-piece", "bpe", "llama"),
           "unigram": sentence_piece("unigram", "unigram", "t5"),
           "byte-level": byte_level(), "character-level": character_level(), "word-piece": word_piece()},
          open(HERE / "tokenize.json", "w"), ensure_ascii=False)
