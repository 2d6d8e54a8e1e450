"""Laws of telling languages apart: scripts decide, code and digits do not count."""

import unicodedata

import pytest

from abduce.strategies.answers import canon, extract
from abduce.strategies.languages import NAMES, UNKNOWN, detect, name_of

SAID = {
    "ar": "كم عدد التفاح المتبقي في النهاية؟",
    "bn": "শেষে কতগুলো আপেল বাকি আছে?",
    "cs": "Kolik jablek jim na konci zbylo, když každý snědl dvě?",
    "de": "Wie viele Äpfel sind am Ende noch übrig?",
    "el": "Πόσα μήλα μένουν στο τέλος;",
    "en": "How many apples are left in the end?",
    "es": "¿Cuántas manzanas quedan al final del día?",
    "fa": "در پایان چند سیب باقی می‌ماند؟",
    "fr": "Combien de pommes reste-t-il à la fin de la journée ?",
    "he": "כמה תפוחים נשארו בסוף?",
    "hi": "अंत में कितने सेब बचे हैं?",
    "id": "Berapa banyak apel yang tersisa pada akhirnya untuk mereka?",
    "it": "Quante mele rimangono alla fine della giornata?",
    "ja": "最後にリンゴはいくつ残っていますか。",
    "ko": "마지막에 사과가 몇 개 남아 있습니까?",
    "nl": "Hoeveel appels zijn er aan het einde van de dag nog over?",
    "pl": "Ile jabłek zostało im na koniec dnia?",
    "pt": "Quantas maçãs sobram para eles no fim do dia?",
    "ro": "Câte mere au mai rămas la sfârșitul zilei?",
    "ru": "Сколько яблок осталось в конце?",
    "sv": "Hur många äpplen har de kvar till slut?",
    "sw": "Je, ni matufaha mangapi yamebaki mwishoni mwa siku?",
    "te": "చివరికి ఎన్ని ఆపిల్స్ మిగిలాయి?",
    "th": "สุดท้ายเหลือแอปเปิ้ลกี่ลูก",
    "tr": "Günün sonunda kaç elma kaldı ve bunu kim yedi?",
    "uk": "Скільки яблук залишилося в кінці?",
    "vi": "Cuối cùng còn lại bao nhiêu quả táo?",
    "zh": "最后还剩下多少个苹果?",
}


@pytest.mark.parametrize("language", sorted(NAMES))
def test_a_question_is_known_by_its_language(language):
    assert detect(SAID[language]).language == language
    assert detect(SAID[language]).confidence > 0.5


@pytest.mark.parametrize(
    "text", ["", "56", "7 x 8 = 56", "a\n\nb", "```python\nfor the value in of\n```", "ok"]
)
def test_what_has_no_language_has_none(text):
    assert detect(text) == (UNKNOWN, 0.0)


@pytest.mark.parametrize("language", ["es", "vi", "te"])
def test_the_form_of_the_characters_does_not_matter(language):
    text = SAID[language]
    assert detect(unicodedata.normalize("NFD", text)) == detect(unicodedata.normalize("NFC", text))


def test_a_formula_does_not_make_an_answer_english():
    assert detect(SAID["sw"] + r" $total apples of the value$ \frac \text").language == "sw"


def test_more_text_makes_surer():
    assert detect(SAID["es"] * 3).confidence >= detect("Ella tiene 5.").confidence


def test_names_are_told_and_unknown_codes_stay():
    assert (name_of("te"), name_of("xx")) == ("Telugu", "xx")


@pytest.mark.parametrize("written", ["১২", "١٢", "१२", "１２", "౧౨", "๑๒", "12"])
def test_digits_of_any_script_are_the_same_number(written):
    assert canon(written) == "12"
    assert canon(extract("number", f"= {written}.") or "") == "12"


def test_thousands_separators_are_no_digits():
    assert canon("1,234") == canon("১,২৩৪") == "1234"
