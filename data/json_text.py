"""JSON text to values: whatever cannot be read is one kind of error."""

import json
from collections.abc import Callable
from typing import Any


def parsed(text: str, parse: Callable[[str], Any] = json.loads) -> Any:
    """What a JSON text says. Raises JSONDecodeError, also for lists too deep in one another and for numbers of too many digits for Python."""
    try:
        return parse(text)
    except RecursionError:
        raise json.JSONDecodeError("lists or objects lie too deep in one another", text, 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer of more than 4,300 digits, and what `parse` itself refuses
        raise json.JSONDecodeError(str(error).partition(";")[0], text, 0) from None
