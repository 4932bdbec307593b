"""Inputs of the comparison."""

PROMPTS = [
    "Write a Python function that reverses a linked list.",
    "The three primary colors are",
    "Explain in two sentences why the sky is blue.",
    "Die Hauptstadt von Frankreich ist",
    "SELECT name, count(*) FROM users",
    "一二三四五六七",
    """Summarize the following report in one sentence.

The committee met on Tuesday to discuss the state of the harbour. Attendance was good, although two members were ill. The
engineer explained that the northern pier had lost eleven of its forty piles since the winter of 1987, and that repairs would
cost about 240,000 crowns. Mrs. Halvorsen asked whether the ferry could use the southern pier instead. The engineer answered
that the water there is only 3.2 metres deep at low tide, which is enough for the small ferry but not for the new one. After
a long discussion, the committee voted seven to two to ask the county for half of the money.""",
    """Find the bug in this function and explain it.

```python
def merge(left, right):
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            i += 1
    return result + left[i:] + right[j:]
```""",
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
