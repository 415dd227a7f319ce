"""Metrics of captions as in COCO's evaluation: BLEU-1 to BLEU-4 of the whole set (Papineni
et al. 2002), CIDEr-D (Vedantam et al. 2015, n = 4, sigma = 6) and ROUGE-L (Lin 2004, beta = 1.2).

CIDEr takes its inverse document frequency from the references of the evaluated samples, so another
choice of samples changes it. Scores are printed times 100, as in papers.

Words follow the Penn Treebank tokenizer of COCO's evaluation: lower case, most punctuation dropped, contractions
split ("don't" -> "do n't"). It is written in Python instead of using Stanford's jar (CoreNLP 3.4.1), from the jar's
output; the tests compare the two. Its oddities are kept, because published scores include them: brackets become the
words "-lrb-" and "-rrb-", "!!!" and "?!" are words while "!" is dropped, emoji vanish, "AT&T" is one word and "at&t" three.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import ValueMetric, mean_score

#: Tokens that COCO's evaluation drops after tokenizing. The jar writes brackets in lower case, but its list
#: has them in upper case, so they stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "...", "?", "!", ",", ":", "-", "--", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
#: Characters that become words with another spelling.
_WRITTEN = {
    **dict.fromkeys("–—―", "--"),
    **dict.fromkeys("“«", "``"),
    **dict.fromkeys("”»", "''"),
    **dict.fromkeys("‘‹‛", "`"),
    **dict.fromkeys("’›", "'"),
    **dict.fromkeys("¤₠€", "$"),
    **{'"': "''", "…": "...", "£": "#", "¢": "cents"},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "", "&quot;": "''"},
}
#: Quotes inside words.
_QUOTES = str.maketrans("’›‘‹‛", "''```")
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|drs|st|jr|sr|vs|etc|prof|ave|blvd|rd|co|inc|ltd|corp|mt|ft|gen|sen|rep|gov|capt|lt|sgt|col|adm|rev|hon|"
    "jan|feb|mar|apr|aug|sept|oct|nov|dec"
)
#: A letter, and a letter or digit; neither includes characters above U+FFFF, which the jar drops.
_NEITHER = r"\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2bff\U00010000-\U0010FFFF"
_L = rf"(?:[^\W\d_{_NEITHER}]|[\u2071\u207f\u2090-\u209c])"
_W = rf"(?:[^\W_{_NEITHER}]|[\u2071\u207f\u2090-\u209c])"
_A = "['’]"
_NUMBER = r"(?:\d+(?:[.,:/]\d+)*|(?:[.,:]\d+)+)"
#: Symbols that are words by themselves; others are dropped.
_SYMBOL = (
    r"[!-/:-@\[-`{-~\u00a1-\u00ac\u00ae-\u00bf\u00d7\u00f7\u2013-\u2023\u2026\u2030-\u2044\u2070-\u20a0\u20a4\u20ac"
    r"\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff65]"
)
#: Patterns of words: the longest match wins, the first on a tie. Contractions end the first patterns.
_WORDS_RULES = (
    rf"{_W}+(?:[-/_]{_W}+)*",
    rf"{_NUMBER}(?:-{_W}+)*",
    r"[A-Z]+(?:&[A-Z]+)+",
    rf"[A-HJ-XZdlno]{_A}{_L}{{2,}}",
    rf"(?i:{_L}+[aeiouy]{_A}[aeiou]{_L}*|(?:c|nor|s|ev|li|nat){_A}(?:mon|easter|mores|ry|l)\b)",
)
_WHOLE = (
    r"</?[A-Za-z][^<>\s]*(?:\s[^<>]*)?>",
    r"(?i:https?://[^\s<>\"]*[^\s<>\"().,;:!?'\]}])",
    r"(?i:www\.(?:[a-z0-9-]+\.)+[a-z]{2,4}(?:/[^\s<>\"()]*[a-z0-9/])?)",
    r"(?i:(?:[a-z0-9][a-z0-9-]*\.)+(?:com|net|org|edu)(?![a-z0-9]))",
    r"(?i:(?:[a-z0-9][a-z0-9-]*\.)+com/[^\s<>\"()]*[a-z0-9/])",
    r"[A-Za-z0-9][\w.-]*@(?:[\w-]+\.)+[A-Za-z]+",
    r"[#@][A-Za-z_]\w*",
    rf"[-+]{_NUMBER}",
    r"\d{1,2} \d+/\d+",
    r"\(\d{3}\) ?\d{3}[- ]\d{4}",
    rf"{_L}+\d*(?:\.{_L}{_W}*)+(?:[-_]{_W}+)*",
    r"(?:[A-Za-z]\.)+",
    rf"(?i:(?:{_ABBREVIATIONS})\.)(?!{_L})",
    rf"{_W}+\.(?=[,;:])",
    r"(?i:ph\.d\.)",
    r"(?i:(?:ca|no|nos|fig|figs|pp?|art)\.)(?=\s*\d)",
    r"[Cc]\+\+|[CcFf]#",
    r"(?:US|HK|A|C|NZ|S)\$",
    rf"{_A}(?i:s|m|d|ll|re|ve)(?!{_L})",
    rf"(?i:n{_A}t)(?!{_L})",
    rf"{_A}(?i:t)(?=(?i:is|was)(?!{_L}))",
    rf"{_A}\d\d(?![\d\"'])(?:s(?!{_W}))?",
    rf"{_A}(?i:em|till?|cause)(?!{_W})",
    rf"{_A}[nN](?:{_A}|(?!{_W}))",
    rf"(?i:ol{_A}|[yjl]{_A}(?={_L}|$))",
    r"[<>]?[:;=]['’]?[-o*]?[()\[\]DPpO03\\|](?![A-Za-z0-9])",
    r"\^_\^|-_-",
    r"&amp;|&lt;|&gt;|&quot;|&apos;|&nbsp;|&#\d+;",
    r"[?!]{2,}",
    r"\.{2,}",
    r"--+",
    r"''|``",
    r"##+|\*\*+|__+",
)
_RULES = tuple(map(re.compile, (*_WORDS_RULES, *_WHOLE, _SYMBOL)))
_WORDS = frozenset(_RULES[: len(_WORDS_RULES)])
_NOT = re.compile(rf"(?i:n{_A}t)(?!{_L})")
_PLAIN = re.compile(r"[a-z]+(?= |$)")
_BRACKET = re.compile(r"[()\[\]{}]")
#: Position at which words written as one are split in two.
_JOINED = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}


def caption_words(text: str) -> list[str]:
    """Split a text into the words that COCO's metrics count.

    >>> caption_words("A man's dog (brown) can't sit, at 3.5 m!")
    ['a', 'man', "'s", 'dog', '-lrb-', 'brown', '-rrb-', 'ca', "n't", 'sit', 'at', '3.5', 'm']
    """
    return [
        word
        for token in _tokens(text.replace("\u00ad", ""))
        for word in _written(token).split()
        if word not in PUNCTUATION
    ]


def _tokens(text: str) -> Iterator[str]:
    """Yield the text's tokens, spelled as in the text."""
    place = 0
    while place < len(text):
        # a shortcut: most words are plain, and there are many rules
        if (plain := _PLAIN.match(text, place)) and plain[0] not in _JOINED:
            yield plain[0]
            place = plain.end()
            continue
        found = [match for rule in _RULES if (match := rule.match(text, place))]
        if not found:
            place += 1  # a space, or a character that the jar drops
            continue
        longest = max(found, key=re.Match.end)
        end = longest.end()
        if longest.re in _WORDS:
            if end - place > 1 and _NOT.match(text, end - 1):
                end -= 1
            elif (second := _JOINED.get(longest[0].lower())) and text[end : end + 1] not in (
                "'",
                "’",
            ):
                yield text[place : place + second]
                place += second
        yield text[place:end]
        place = end


def _written(token: str) -> str:
    """Return a token as the jar writes it."""
    if token in _WRITTEN:
        return _WRITTEN[token]
    if len(token) > 1 and set(token) in ({"."}, {"-"}):
        return "..." if token[0] == "." else "--"
    plain = token.lower().translate(_QUOTES)
    return _BRACKET.sub(lambda found: _BRACKETS[found[0]], plain)


Words: TypeAlias = Sequence[str]
NGram: TypeAlias = tuple[str, ...]
#: COCO's guards against division by zero in BLEU; they affect scores of very few samples.
_TINY, _SMALL = 1e-15, 1e-9


class CaptionMetric(ValueMetric):
    """Keeps the words of each caption and its references."""

    needs: ClassVar[tuple[Group, ...]] = (("texts", "references"),)

    def _value(self, sample: Mapping[str, Any]) -> tuple[Words, tuple[Words, ...]]:
        if not sample["references"]:
            raise DataError("a sample", "has no reference captions", "leave it out")
        return caption_words(sample["texts"]), tuple(map(caption_words, sample["references"]))


class BLEUMetric(CaptionMetric):
    """BLEU-1 to BLEU-`n`; the reference length is the closest one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._n = n

    def _result(self) -> Sequence[Score]:
        scores = [100 * value for value in bleu(list(self.values.values()), self._n)]
        num = len(self.values)
        return [Score(f"bleu_{k}", value, num, True) for k, value in enumerate(scores, start=1)]


class CIDErMetric(CaptionMetric):
    """CIDEr-D; the idf is 0 unless there are several samples."""

    minimum = 2

    def __init__(self, n: int, sigma: float) -> None:
        super().__init__()
        self._n, self._sigma = n, sigma

    def _result(self) -> Sequence[Score]:
        values = self.values
        scores = cider_d(list(values.values()), self._n, self._sigma)
        own = dict(zip(values, (100 * score for score in scores), strict=True))
        return [mean_score("cider_d", own, higher_is_better=True)]


class ROUGEMetric(CaptionMetric):
    """ROUGE-L: best precision and best recall over the references."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def _result(self) -> Sequence[Score]:
        own = {
            index: 100 * rouge_l(words, references, self._beta)
            for index, (words, references) in self.values.items()
        }
        return [mean_score("rouge_l", own, higher_is_better=True)]


def bleu(samples: Sequence[tuple[Words, Sequence[Words]]], n: int = 4) -> list[float]:
    """Compute corpus BLEU-1 to BLEU-n, 0 to 1."""
    correct, guessed = [0] * n, [0] * n
    length = reference_length = 0
    for words, references in samples:
        length += len(words)
        reference_length += min((abs(len(one) - len(words)), len(one)) for one in references)[1]
        for k in range(n):
            found = _ngrams(words, k + 1)
            most: Counter[NGram] = Counter()
            for one in references:
                most |= _ngrams(one, k + 1)
            guessed[k] += max(0, len(words) - k)
            correct[k] += (found & most).total()
    scores, product = [], 1.0
    for k in range(n):
        product *= (correct[k] + _TINY) / (guessed[k] + _SMALL)
        scores.append(product ** (1 / (k + 1)))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [score * brevity for score in scores]


def cider_d(
    samples: Sequence[tuple[Words, Sequence[Words]]], n: int = 4, sigma: float = 6.0
) -> list[float]:
    """Compute CIDEr-D of each sample, 0 to 10."""
    num_documents: Counter[NGram] = Counter()
    for _, references in samples:
        num_documents.update({gram for one in references for gram in _all_ngrams(one, n)})
    log_num = math.log(len(samples))

    def vector(words: Words) -> list[dict[NGram, float]]:
        """Return term frequency times inverse document frequency, for each length of n-grams."""
        weights: list[dict[NGram, float]] = [{} for _ in range(n)]
        for gram, count in _all_ngrams(words, n).items():
            rarity = log_num - math.log(max(1, num_documents[gram]))
            weights[len(gram) - 1][gram] = count * rarity
        return weights

    scores = []
    for words, references in samples:
        own, total = vector(words), 0.0
        for one in references:
            # lengths in bigrams, as in COCO's code
            difference = max(0, len(words) - 1) - max(0, len(one) - 1)
            penalty = math.exp(-(difference**2) / (2 * sigma**2))
            total += penalty * sum(map(_clipped_cosine, own, vector(one))) / n
        scores.append(10 * total / len(references))
    return scores


def rouge_l(words: Words, references: Sequence[Words], beta: float = 1.2) -> float:
    """Compute ROUGE-L of a sample, 0 to 1."""
    # COCO's code splits "" into one empty word
    words, references = words or ("",), [one or ("",) for one in references]
    common = [_longest_common(words, one) for one in references]
    precision = max(value / len(words) for value in common)
    recall = max(value / len(one) for value, one in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _clipped_cosine(own: Mapping[NGram, float], other: Mapping[NGram, float]) -> float:
    lengths = math.sqrt(sum(v * v for v in own.values()) * sum(v * v for v in other.values()))
    shared = sum(
        min(value, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, value in own.items()
    )
    return shared / lengths if lengths else shared


def _ngrams(words: Words, n: int) -> Counter[NGram]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _all_ngrams(words: Words, n: int) -> Counter[NGram]:
    return Counter(
        tuple(words[i : i + k]) for k in range(1, n + 1) for i in range(len(words) - k + 1)
    )


def _longest_common(a: Words, b: Words) -> int:
    """Return the length of the longest common subsequence.

    >>> _longest_common("abcd", "axcd")
    3
    """
    row = [0] * (len(b) + 1)
    for word in a:
        previous = 0
        for place, other in enumerate(b, start=1):
            above = row[place]
            row[place] = previous + 1 if word == other else max(above, row[place - 1])
            previous = above
    return row[-1]
