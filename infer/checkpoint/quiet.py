"""The one place where lines of libraries are silenced: those that an ordinary run prints and nobody can act on, each by its words and its module."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The beginning of the message, its category and the module that warns.
WARNINGS = [
    ("`is_gradient_checkpointing` is deprecated", FutureWarning, r"transformers\.modeling_utils"),  # trl 1.16 and peft 0.21 ask by the old name
]


def silence_old_names() -> None:
    """Let trl and peft not warn of how they themselves call transformers; other warnings, and the same of other modules, stay."""
    for message, category, module in WARNINGS:
        warnings.filterwarnings("ignore", message, category, module)


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep back what transformers says of tensors that a checkpoint lacks or has beside the model's: `load` says in its own words what of it counts."""
    logger = logging.getLogger("transformers.modeling_utils")

    def passes(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in ("LOAD REPORT", "This checkpoint seem corrupted"))

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
