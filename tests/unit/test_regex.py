"""Regular expressions mean what Python's `re.fullmatch` says, in both directions, or are refused by part and offset."""

from __future__ import annotations

import itertools
import json
import re
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.engine.regex_syntax import RefusedRegexError
from penstock.engine.vllm.constraints.json_schema import rewritten
from penstock.engine.vllm.constraints.regex import translate

from tests.unit.grammar_walks import accepts, compiled_schema, compiler, walks

EXACT = [
    r"ab",
    r"\Aab\Z",
    r"^ab$",
    r"^^a$$",
    r"^a|b$",
    r"(^a|^b)c$",
    r"a(b$|c$)",
    r"\n[ab]",
    r"a{2,3}?b*?c+?d??",
    r"a{,2}b{2,}c{3}",
    r"x{y}{1,2}",
    "a{\u0663}",
    "a{0002}",
    r"(?P<n>a)(?:b|)(c)?",
    r"[]a-c^-]",
    r"[^a-z]",
    r"[\x00-\x1f]",
    r"[\d\-.]+\.\w\s",
    r"\W\D\S[^\w][^\D]",
    r"\t\r\f\v\0\x41\u00e9\U0001D11E",
    r"é|𝄞|☃",
    r"\/\.\*\[\]\{\}\\\"'",
    r"a||b",
    r"()",
    r".",
    r"(a*)*b",
    r'["\\\n]',
]
REFUSED = [
    ("a$b", "$", 1),
    (r"a\Zb", r"\Z", 1),
    ("a^b", "^", 1),
    ("(a^)b", "^", 2),
    ("(a$)*", "$", 2),
    ("^*", "^*", 0),
    ("(?=a)b", "(?=a", 0),
    ("b(?!a)", "(?!a", 1),
    ("(?<=a)b", "(?<=", 0),
    ("(?<!a)b", "(?<!", 0),
    ("(?i)a", "(?i)", 0),
    ("x(?i:a)", "(?i:", 1),
    ("(?>a)", "(?>a", 0),
    ("(?#a)", "(?#a", 0),
    ("(a)(?(1)b)", "(?(1", 3),
    (r"(a)\1", r"\1", 3),
    (r"(?P<n>a)(?P=n)", "(?P=", 8),
    (r"\bx", r"\b", 0),
    (r"x\B", r"\B", 1),
    (r"a\p{L}", r"\p", 1),
    (r"\q", r"\q", 0),
    (r"\N{DIGIT ONE}", r"\N", 0),
    (r"\cA", r"\c", 0),
    ("a++", "++", 1),
    ("a**", "*", 2),
    ("*a", "*", 0),
    ("{2}", "{", 0),
    ("a{3,2}", "{3,2}", 1),
    ("a{" + "9" * 5000 + "}", "{" + "9" * 5000 + "}", 1),
    ("a{0," + "9" * 5000 + "}", "{0," + "9" * 5000 + "}", 1),
    ("a{,}", "{,}", 1),
    ("{,}a", "{", 0),
    ("(?P<n>a)(?P<n>b)", "(?P<n>", 8),
    ("(a", "(", 0),
    ("a)", ")", 1),
    ("[a", "[", 0),
    ("[z-a]", "z-a", 1),
    (r"[\d-z]", r"\d-z", 1),
    ("\\", "\\", 0),
    (r"\ud800", r"\ud800", 0),
    ("(" * 70 + ")" * 70, "(", 64),
]


@pytest.mark.parametrize("pattern", EXACT)
def test_every_text_matches(pattern: str) -> None:
    texts = walks(compiler().compile_regex(translate(pattern)), 30)
    assert texts
    assert [text for text in texts if not re.fullmatch(pattern, text)] == []


@pytest.mark.parametrize("pattern", [one for one in EXACT if one not in (r"\W\D\S[^\w][^\D]",)])
def test_every_match_in_ascii_is_a_text(pattern: str) -> None:
    grammar = compiler().compile_regex(translate(pattern))

    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True))
    def check(text: str) -> None:
        # Python's $ also stands before a last line break, which is no part of what matched.
        if re.fullmatch(pattern, text) and not any(0xD800 <= ord(character) <= 0xDFFF for character in text):
            assert accepts(grammar, text.encode()), text

    check()


@pytest.mark.parametrize(("pattern", "part", "offset"), REFUSED)
def test_what_cannot_be_kept_is_refused_by_part_and_offset(pattern: str, part: str, offset: int) -> None:
    with pytest.raises(RefusedRegexError) as raised:
        translate(pattern)
    assert (raised.value.part, raised.value.offset) == (part, offset)
    assert f"offset {offset}" in str(raised.value)


SIGNS = "^-]\\[!_a~\n"
SETS = [
    *("".join(signs) for count in (1, 2, 3) for signs in itertools.combinations(SIGNS, count)),
    *(f"{first}\0{last}" for first, last in ("^`", "^~", "!^", "[^", "]^", "-^", ",-", "-.", "\\]")),  # ranges
]


@pytest.mark.parametrize("excludes", [False, True])
def test_a_set_is_its_characters_whatever_signs_they_are(excludes: bool) -> None:
    characters = {chr(code) for code in range(0x20, 0x7F)} | {"\n"}
    wrong = []
    for members in SETS:
        pattern = "".join("-" if one == "\0" else re.escape(one) for one in members)
        pattern = f"[{'^' if excludes else ''}{pattern}]"
        expected = {one for one in characters if re.fullmatch(pattern, one)}
        plain = compiler().compile_regex(translate(pattern))
        in_json = compiled_schema(rewritten(json.dumps({"type": "string", "pattern": f"^{pattern}$"})))
        allowed = {one for one in characters if accepts(plain, one.encode())}
        # A JSON string may be held to less: what has to be escaped is left out where anything else fits.
        strings = {one for one in characters if accepts(in_json, json.dumps(one).encode())}
        if allowed != expected or not expected - {'"', "\\", "\n"} <= strings <= expected:
            wrong.append(pattern)
    assert wrong == []


def test_sets_that_unfold_are_bounded() -> None:
    with pytest.raises(RefusedRegexError):
        translate(r"\W" * 30_000)


PIECES = st.sampled_from([*"ab.|()[]^$*+?{}\\-,12dwsDWSAZnxu", "\\d", "(?:", "[^", "{1,2}", "\\Z", "(?P<n>"])


def test_whatever_is_accepted_is_a_regular_expression_and_kept() -> None:
    accepted = []

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.lists(PIECES, max_size=9).map("".join))
    def try_one(pattern: str) -> None:
        try:
            translated = translate(pattern)
        except RefusedRegexError:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expression = re.compile(pattern.replace("\\z", "\\Z"))
        for text in walks(compiler().compile_regex(translated), 3, most=60):
            assert expression.fullmatch(text), (pattern, translated, text)
        accepted.append(pattern)

    try_one()
    assert len(accepted) >= 50
