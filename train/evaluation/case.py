"""What is known of a record that a model was evaluated on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a given text: its negative log-likelihood in `nats`, over so many `tokens`, and the `text` itself.

    The tokens are all that the model would say, what ends the answer among them; of diffusion the nats are those of a bound.
    """

    nats: float
    tokens: int
    text: str

    @property
    def size(self) -> int:
        """The text's bytes in UTF-8."""
        return len(self.text.encode())


@dataclass
class Case:
    """A record and what one model made of it; what is not there was not asked for, or could not be had.

    `likelihood` is the reference's; `choices` are those of a multiple-choice record, of which number `right` is. `marks` are what rules and models
    gave, by their names: of a reward one number an answer, of a verdict one.
    """

    answers: Sequence[str] = ()
    reference: str | None = None
    likelihood: Likelihood | None = None
    choices: Sequence[Likelihood] = ()
    right: int | None = None
    marks: dict[str, Sequence[float]] = field(default_factory=dict)
    rows: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what metrics have made of it
