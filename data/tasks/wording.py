"""What is said around several tasks that are to be done together, in the language of their instructions."""

from collections.abc import Sequence

from ..errors import UserError
from ..text.scripts import script_share

LANGUAGES = ("en", "ko")
ALL = {
    "en": "Do all of these tasks with the text above.",
    "ko": "위 글로 다음 과제를 모두 하십시오.",
}
ALL_WITHOUT_INPUT = {
    "en": "Do all of these tasks.",
    "ko": "다음 과제를 모두 하십시오.",
}
ANSWER = {
    "en": {
        "json": "Answer with one JSON object whose keys are the names of the tasks.",
        "text": "Answer each under a heading, ### and the name of the task.",
        "keyed": "Answer each on a line: the name of the task, a colon, the result.",
    },
    "ko": {
        "json": "과제 이름을 키로 하는 JSON 객체 하나로 답하십시오.",
        "text": "과제마다 ### 과제 이름 제목 아래에 답하십시오.",
        "keyed": "과제마다 한 줄에 과제 이름: 결과로 답하십시오.",
    },
}


def check_language(language: str | None) -> None:
    """Raise UserError for a language that nothing is said in."""
    if language is not None and language not in LANGUAGES:
        raise UserError(f"task_language must be {' or '.join(LANGUAGES)}, got {language!r}")


def language_of(instructions: Sequence[str]) -> str:
    """ko where half of the letters of the instructions are Hangul, else en.

    >>> language_of(["감정을 분류하라.", "tree를 옮겨라."])
    'ko'
    """
    return "ko" if script_share(" ".join(instructions), "ko") >= 0.5 else "en"
