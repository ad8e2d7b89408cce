"""A classifier that lives on: texts and pairs come at any time, and those that wait together go through it together, without padding."""

from __future__ import annotations

from collections.abc import Callable

from ...data.classification.encoding import EncodedText
from ...data.errors import UserError
from ..engine.embedding import EmbeddingTicket
from ..requests.events import Event
from .classify import Classified, Classifier, Input
from .live import LiveEncoder, TextRequest


class LiveClassifier(LiveEncoder):
    """Says of texts that come at any time, from any thread, of which class they are, in passes that they share."""

    called = "classifier"
    encoder: Classifier

    def embed(self, prompt, **how) -> EmbeddingTicket:
        """Raise UserError: a classifier gives no vectors."""
        raise UserError(f"{self.model.config.model_type} is a classifier here: it says which class a text is of and gives no vectors, use an encoder without its head")

    def classify(self, prompt: Input | list[int], *, truncate: bool = False, on_event: Callable[[Event], None] | None = None) -> EmbeddingTicket:
        """Hand in a text, a pair or token ids, and return at once; the ticket's `embedding` are the logits, which `said` reads.

        Raises UserError for a text that is longer than the model reads, unless it is to be truncated; QueueFull and EngineClosed as `LiveEngine.submit`.
        """
        return self._hand_in(lambda: self._classify_request(prompt, truncate), EmbeddingTicket, on_event)

    def said(self, ticket: EmbeddingTicket, timeout: float | None = None) -> Classified:
        """Wait for what is said of a text that was handed in."""
        request = ticket.generation.request
        whole = len(request.prompt_ids) + request.truncated  # only whether there were more is asked
        return self.encoder.said(ticket.embedding(timeout), EncodedText(list(request.prompt_ids), None, whole))

    def describe(self) -> str:
        """What it says, in a line."""
        names = self.encoder.names
        told = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        what = {"regression": "a number", "multi_label_classification": f"which of {told}"}.get(self.encoder.problem, f"one of {told}")
        return f"a classifier: {what}, of texts of up to {self.encoder.max_length} tokens"

    def _classify_request(self, prompt: Input | list[int], truncate: bool) -> TextRequest:
        if isinstance(prompt, list) and all(type(each) is int for each in prompt):
            return self._asked(self._given(prompt), truncate)
        try:
            [found] = self.encoder.encode([prompt])
        except UserError as error:
            raise UserError(str(error).replace("text 1 ", "prompt 1 ", 1)) from None
        return self._asked(found, truncate)
