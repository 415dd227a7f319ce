"""Words of captions as the Penn Treebank tokenizer of COCO's evaluation splits them: lower case, most
punctuation dropped, contractions divided ("don't" -> "do n't").

Python in place of Stanford's jar (CoreNLP 3.4.1), written from what it answers; the tests compare the two. Its oddities
are kept, since published scores have them: brackets become the words "-lrb-" and "-rrb-", "!!!" and "?!" are words while
"!" is dropped, emoji vanish, "AT&T" is one word and "at&t" three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: What COCO's evaluation leaves out after tokenizing. The jar writes brackets in small letters, and the
#: list has them in capitals, so that they stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "...", "?", "!", ",", ":", "-", "--", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
#: Characters that are words of another spelling.
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
#: A letter, and a letter or digit; of both none beyond U+FFFF, which the jar drops.
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
#: Kinds of words: the longest that fits is taken, the first of equal ones. Contractions end the first kinds.
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
#: Two words that are written as one: where the second begins.
_JOINED = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}


def caption_words(text: str) -> list[str]:
    """The words that COCO's metrics count.

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
    """The text's tokens, as they are spelled in it."""
    place = 0
    while place < len(text):
        # most words are plain, and the rules are many
        if (plain := _PLAIN.match(text, place)) and plain[0] not in _JOINED:
            yield plain[0]
            place = plain.end()
            continue
        found = [match for rule in _RULES if (match := rule.match(text, place))]
        if not found:
            place += 1  # a space, or what the jar drops
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
    """A token as the jar writes it."""
    if token in _WRITTEN:
        return _WRITTEN[token]
    if len(token) > 1 and set(token) in ({"."}, {"-"}):
        return "..." if token[0] == "." else "--"
    plain = token.lower().translate(_QUOTES)
    return _BRACKET.sub(lambda found: _BRACKETS[found[0]], plain)
