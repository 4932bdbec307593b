"""Writes pre_tokenizers.json: how the models' own expressions split some texts, by the names of GGUF pre-tokenizers.

  pip install regex
  python tests/data/vocab/pre_tokenizers.py

The expressions are those of each model's `tokenizer.json`, searched for by Python's `regex`. A piece is its number of
characters.
"""

import json
import pathlib

import regex

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "Hello, world!  I'll   say it's\tfine... WE'RE don't",
    "  \n\n leading\r\n\r\n  and trailing  \n ",
    "camelCase HTTPServer iPhone McDonald’s ÉCOLE éCole straßeGROSS",
    "1 12 123 1234 12345 123456 1234567 3.14159 v2024beta 1,000,000 x1234y ٣٤٥٦",
    "naïve café e\u0301e\u0301 ½ ² Ⅷ x²+y² €5 $100%",
    "日本語のテキスト、中文文本。한국어 텍스트 ㄱㄴ ㄅㄆ ｶﾀｶﾅ",
    "हिन्दी पाठ में मात्राएँ বাংলা ไทยทดสอบ မြန်မာ ខ្មែរ",
    "Привет, МИР! Ελληνικά ՀԱՅԵՐԵՆ ქართული שלום مرحبا",
    "fn main() { println!(\"{}\", a_b[0]); } // #tag /* x */\n\tif (a&&b||!c) {}\n\n",
    "🙂👩\u200d👩\u200d👧 ☃☃ →←∑ “quoted” ‘single’ — dash…",
    "a/b/c http://x.y/z?q=1#f\n//\nc:\\d",
    "!important .word ,comma (paren) -dash _under `tick` ^up ~tilde",
    "     5 spaces\t\ttabs \u00a0nbsp\u3000wide",
    "x\n\n\n\ny\n \nz",
    "ALLCAPS'S don'T 'quoted' 'sup n't",
    "IMGIMGABCZ <sentinel:12> a    b",
    "one two 3 four 55 six",
    " " * 20 + "x" + " " * 7,
    "x" * 100 + "=" * 100 + " " * 100 + "y\n",
    "",
]
# The parts that several expressions share.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def cased(upper, lower, suffix):
    return rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{suffix}"


def join(*parts):
    return "|".join(parts)


UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NOT_HAN = [f"[{letters[1:-1]}&&[^\\p{{Han}}]]" for letters in (UPPER, LOWER)]
CAMEL = cased(UPPER, LOWER, f"{CONTRACTIONS}?")
LLAMA3 = join(CONTRACTIONS, WORDS, r"\p{N}{1,3}", SYMBOLS, SPACES)
QWEN2 = join(CONTRACTIONS, WORDS, r"\p{N}", SYMBOLS, SPACES)
GPT4O = join(CAMEL, r"\p{N}{1,3}", SLASHES, SPACES)
PUNCTUATED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
DEEPSEEK3 = join(PUNCTUATED, r" ?[\p{P}\p{S}]+[\r\n]*", SPACES)
HAN_AND_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
EAST_ASIAN = "[一-龥ࠀ-一가-\ud7ff]+"
BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
# A list of ranges from Unicode 11, before Georgian's letters had case.
CASED = r"[\p{Lu}\p{Ll}\p{Lt}--[\u10d0-\u10ff]]+"
UNSPACED = (
    "[一-鿿㐀-䶿\uf900-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-\u2fdf\u0e00-\u0e7f\u0e80-\u0effក-\u17ffက-႟ꩠ-ꩿꧠ-\ua9ff가-\ud7afᄀ-ᇿ]+"
)
RULES = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "dbrx": [LLAMA3],
    "glm4": [LLAMA3],
    "qwen2": [QWEN2],
    "qwen35": [
        join(CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", SPACES)
    ],
    "tekken": [join(cased(UPPER, LOWER, ""), r"\p{N}", SLASHES, SPACES)],
    "gpt-4o": [GPT4O],
    "granite-embed-multi-97m": [GPT4O],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "afmoe": [r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", UNSPACED, DEEPSEEK3],
    "gemma4": [],
    "sarvam-moe": [],
    "deepseek-llm": [
        r"[\r\n]", r"\s?" + CASED, "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", EAST_ASIAN, r"\p{N}+"
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK3],
    "spark2_5": [
        r"\p{N}{1,3}", HAN_AND_KANA, join(PUNCTUATED, r" ?[\p{P}\p{S}]+", r"[\r\n]", r"\s+(?!\S)", r"\s+"), r"\p{N}"
    ],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "poro-chat": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
    "chameleon": [
        "<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]", GPT2,
    ],
    "bailingmoe": [
        join(r"'(?i:[sdmt]|ll|ve|re)", r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}]++[\r\n]*",
             r"\s*[\r\n]", r"\s+(?!\S)", r"\s+")
    ],
    "seed-coder": [join(CONTRACTIONS, WORDS, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", SPACES)],
    "exaone-moe": [
        join(CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", r"\p{N}",
             r" ?[^\s\p{L}\p{N}]+[\r\n/]?", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+")
    ],
    "jais-2": [
        join(CONTRACTIONS, WORDS, r"\p{N}{1,3}", SYMBOLS, r"\s*[\r\n]+",
             *(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")), r"\s{1}")
    ],
    "youtu": [
        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+",
        join(CAMEL, r"\p{N}", SLASHES, SPACES),
    ],
    "laguna": [r"[^\n]+|[\n]+", QWEN2],
    "ufakzeka": [join(WORDS, r"\p{N}", SYMBOLS, SPACES)],
    "minicpm5": [r"\p{N}{1,3}", join(CONTRACTIONS, WORDS, r"\p{N}+", SYMBOLS, SPACES)],
    "kimi-k2": [
        join(r"[\p{Han}]+", cased(*NOT_HAN, f"{CONTRACTIONS}?"), r"\p{N}{1,3}", SYMBOLS, SPACES)
    ],
}


def split(patterns, text):
    pieces = [text]
    for pattern in patterns:
        after = []
        for piece in pieces:
            ends = {end for found in regex.finditer(pattern, piece, regex.V1) for end in found.span()}
            cuts = sorted(ends | {0, len(piece)})
            after += [piece[start:end] for start, end in zip(cuts, cuts[1:])]
        pieces = after
    return [len(piece) for piece in pieces if piece]


splits = {name: [split(patterns, text) for text in TEXTS] for name, patterns in RULES.items()}
lines = [f"  {json.dumps(name)}: {json.dumps(lengths, separators=(',', ':'))}" for name, lengths in splits.items()]
texts = ",\n".join(f"  {json.dumps(text, ensure_ascii=False)}" for text in TEXTS)
(HERE / "pre_tokenizers.json").write_text(
    f'{{"texts": [\n{texts}\n], "splits": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8"
)
