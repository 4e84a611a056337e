"""Penn Treebank tokens of English text, as the caption metrics count them.

In: a text. Out: its tokens in lower case, without punctuation. Equal to what `pycocoevalcap` gets from the tokenizer of
Stanford CoreNLP 3.4.1 (`-preserveLines -lowerCase`), whose behaviour was observed from outside: which words keep their
full stop was asked of it for all strings of up to four letters and the beginnings of 170,000 words. Knows nothing of
metrics.
"""

from __future__ import annotations

from functools import lru_cache

import regex

# Not counted: PUNCTUATIONS of pycocoevalcap/tokenizer/ptbtokenizer.py. It also lists brackets, but in capitals (-LRB-),
# and compares them with text in lower case: brackets do count.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Words that keep their full stop: always; unless they are in lower case; unless they are in capitals; before a number.
ALWAYS = """al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm adj adm adv ala apr aug ave bhd
cie col cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind jan jos jul jun kan ltd maj mar mme
mon mrs neb nev nov oct pfc plc pvt rep rev sen sep seq sfc sgt spc ste sys tel thu tue wed wis wyo alex ariz assn asst
atty bldg blvd brig bros capt cmdr colo conn corp dept elec govs insp intl invt kans mich minn mlle mont msgr natl okla
penn pres prof reps sens sept supt tenn tues univ wisc assoc calif profs thurs"""
CAPITALISED = "az la pa ark del ill ore tex mass miss wash"
UNCAPPED = "mfg mtg pte pty ppte ppty ptes ptys"
NUMBERED = "ca no op pp art nos fig figs prop"


def _any(words: str) -> str:
    return "|".join(words.split())


STOPPED = (
    rf"(?:[A-Za-z]|(?i:{_any(ALWAYS)})|{'|'.join(f'{w.title()}|{w.upper()}' for w in CAPITALISED.split())}"
    rf"|{'|'.join(f'{w}|{w.title()}' for w in UNCAPPED.split())})\."
)
APOS = "['’]"
NAME = "[A-Za-z][A-Za-z0-9_:.-]*"  # of a tag or an attribute
HYPHEN = "[-‐‑]"
CLITIC = "(?i:s|m|d|ll|re|ve)(?![A-Za-z])"
LETTER = r"[\p{L}\p{M}]"
ALNUM = r"[\p{L}\p{M}\p{Nd}]"
ELIDED = rf"(?:[dDoOlL]{APOS}\p{{L}})?"
SYMBOLS = (  # that are words of their own; what is in no class here is dropped, as pictographs are
    r"$%&*+=<>\\^|~¡¥-©¬®-´¶-¹¿×÷;·‖‗‚„-•‰-‸※‾-⁂⁰⁴-₎℀-⅏⅕-⅞←-⯿、。〒・！-／：-＠［-｀｛-･"
)

# Alternatives, of which the longest match counts, and the first of equally long ones.
KINDS = {
    "tag": rf"<[!?][A-Za-z-][^<>]*>|</?{NAME}(?: +{NAME}(?: *= *(?:'[^']*'|\"[^\"]*\"|{NAME}))?)* */?>",
    "entity": r"&(?:amp|lt|gt|quot|apos|nbsp|mdash);|&#\d+;",
    "address": r"""https?://[^\s"<>|()]+[^\s"<>|.!?(){},-]"""
    r"""|(?:www\.(?:[^\s"<>|.!?(){},]+\.)+[A-Za-z]{2,4}|(?:[^\s"`'<>|.!?()\[\]{},\-_$=:/@]+\.)+(?:com|net|org|edu))"""
    r"""(?:/[^\s"<>|()]+[^\s"<>|.!?(){},-])?"""
    r"""|<?[A-Za-z0-9][^\s"<>|(){}]*@(?:[^\s"<>|(){}.]+\.)*[^\s"<>|(){}.]+>?"""
    r"""|@[A-Za-z_][A-Za-z_0-9]*|#\p{L}+""",
    "phone": r"(?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}",
    "fraction": r"(?:\d{1,4}[- \xa0])?\d{1,4}[/⁄]\d{1,4}",
    "number": r"[-+]?(?:\d+|\d*(?:[.:,]\d+)+)|\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|\d+(?:[.:,]\d+)*\.[b-z](?=\s|$)",
    "word": rf"{ELIDED}{ALNUM}+(?:{HYPHEN}{ELIDED}{ALNUM}+)*|\p{{L}}{ALNUM}*(?:[.!?]\p{{L}}{ALNUM}*)+"
    r"|(?:[A-Za-z0-9][A-Za-z0-9.,]*)(?:-(?:[A-Za-z0-9]+|(?:[A-Za-z]\.)+))+|[A-Z]+(?:[+&][A-Z]+)+|[A-Z]+\$"
    r"|[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}|[Cc]\+\+|[CcFf]#"
    rf"|{ALNUM}+(?:[_-]{ALNUM}+)+",
    "stopped": rf"(?:[A-Za-z]\.)+|[Pp]h\.[Dd]\.|{STOPPED}|(?i:{_any(NUMBERED)})\.(?= ?\d)"
    rf"|{ALNUM}+(?:-{ALNUM}+)*\.(?=[,;:、])",
    "elided": rf"{APOS}[nN]{APOS}|{APOS}[nN](?![A-Za-z])|[lLdDjJyY]{APOS}|[A-HJ-XZn]{APOS}\p{{L}}{{2,}}"
    rf"|{APOS}(?:\d\d(?=\s|$)|[2-9]0s)"
    rf"|(?![yY]{APOS}){LETTER}*[aeiouyAEIOUY]{APOS}(?!{CLITIC})[aeiouA-Z]{LETTER}*|(?i:n['’`]t)"
    rf"|(?i:{APOS}(?:em|cause|til)|'tis|'twas|ol{APOS}|o{APOS}clock|c'(?:mon|est)|d{APOS}ye)",
    "not": r"[A-Za-z]*[A-MO-Za-mo-z](?P<nt>(?i:n['’`]t))\p{L}*",
    "clitic": rf"{APOS}{CLITIC}",
    "smiley": r"""[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])"""
    r"""|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)""",
    "run": r"[?!]+|\.\.\.|''|<<|>>|\\\*|\*+|#+|@+|_+",
    "dash": "--+|[–—―]",
    "mark": rf"[][(){{}}.,;:'\"/£€¢½¼¾⅓⅔{SYMBOLS}]",
}
TOKEN = regex.compile(rf"(?p){'|'.join(f'(?P<{name}>{pattern})' for name, pattern in KINDS.items())}")
ASTRAL = regex.compile(r"[\U00010000-\U0010ffff]")
SPLIT = {  # words that are two, and the length of the first
    **dict.fromkeys(["gonna", "wanna", "gotta", "gimme", "lemme", "cannot"], 3),
    **dict.fromkeys(["'tis", "'twas"], 2),
}
CLITICS = regex.compile(f"{APOS}{CLITIC}")
WRITTEN = {
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "'", "&apos;": "'", "&nbsp;": "'", "&mdash;": "-", '"': "'"},
    **{"£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
}


@lru_cache(maxsize=65536)
def tokenised(text: str) -> str:
    """The tokens of a text, with spaces between them; a token with a space in it has a no-break space."""
    found: list[str] = []
    text = ASTRAL.sub(" ", text)
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0].lower()
        if kind in ("not", "clitic"):
            token = token.replace("’", "'")
        cut = 0 if CLITICS.match(text, match.end()) else SPLIT.get(token, 0)
        if match["nt"]:
            cut = match.start("nt") - match.start()
        if cut:
            found += [token[:cut], token[cut:]]
        elif kind in ("phone", "smiley"):
            found.append(token.replace("(", WRITTEN["("]).replace(")", WRITTEN[")"]).replace(" ", "\xa0"))
        elif kind == "dash":
            found.append(token if len(token) > 4 else "-")
        else:
            found.append(WRITTEN.get(token, token.replace(" ", "\xa0")))
    return " ".join(token for token in found if token not in PUNCTUATION)
