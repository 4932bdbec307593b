"""Inputs of the comparison."""

PROMPTS = [
    "Write a Python function that reverses a linked list.",
    "The three primary colors are",
    "Explain in two sentences why the sky is blue.",
    "Die Hauptstadt von Frankreich ist",
    "SELECT name, count(*) FROM users",
    "一二三四五六七",
]

TEXTS = [
    "A man is eating food.",
    "search_query: how do vaccines work?",
    "search_document: " + "The quick brown fox jumps over the lazy dog. " * 30,
    "Die Würde des Menschen ist unantastbar.",
    "한국어 문장도 벡터가 됩니다.",
    "हिन्दी में एक वाक्य।",
    "naïve café, ÀÉÎÕÜ & 漢字かな交じり文",
    "x" * 150 + " is a word of more than a hundred characters",
    "emoji 🙂👩‍👩‍👧 and \u200b zero-width, tab\tand\nnewline",
]
