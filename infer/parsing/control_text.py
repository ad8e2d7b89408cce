"""An answer's text with its control tokens written out where they stand, though it comes without them, and late where a stop text may begin."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from ..requests.stop import AnswerText


class ControlText:
    """Puts control tokens between the texts that an answer's tokens make safe to show.

    A text that is held back, as the beginning of a stop text or of a character's bytes, comes with a later token than the control token behind it:
    that one waits until all text before it is there, and is left out where a stop has cut that off.
    """

    def __init__(self, text: AnswerText, controls: Mapping[int, str]):
        """`text` is the answer's own, empty and without stops; `controls` are the control tokens by id."""
        self._text, self._controls = text, controls
        self._known = self._shown = 0  # characters, of the text and of what is shown
        self._waiting: deque[tuple[int, str]] = deque()  # where each stands in the text

    def push(self, id: int, shown: str) -> str:
        """Return what a token makes safe to show, control tokens in it; `shown` is the same without."""
        if not self._controls:
            return shown
        self._known += len(self._text.push(id))
        if id in self._controls:
            self._waiting.append((self._known + len(self._text.fork().finish()), self._controls[id]))
        begin, end, out = self._shown, self._shown + len(shown), []
        while self._waiting and self._waiting[0][0] <= end:
            place, control = self._waiting.popleft()
            out += [shown[self._shown - begin : place - begin], control]
            self._shown = place
        out.append(shown[self._shown - begin :])
        self._shown = end
        return "".join(out)
