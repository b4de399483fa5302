"""Hold the six languages of the small model, in three scripts."""

from models.small.languages.chinese import CHINESE
from models.small.languages.english import ENGLISH
from models.small.languages.french import FRENCH
from models.small.languages.german import GERMAN
from models.small.languages.language import Forms, Language
from models.small.languages.russian import RUSSIAN
from models.small.languages.spanish import SPANISH

LANGUAGES = {one.code: one for one in (ENGLISH, GERMAN, FRENCH, SPANISH, RUSSIAN, CHINESE)}
"""All languages by their ISO 639-1 code."""

__all__ = ["LANGUAGES", "Forms", "Language"]
