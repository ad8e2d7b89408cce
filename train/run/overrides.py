"""What our trainers override of a library's trainer, checked before they train: a method by another name would never be called, without a word."""

from ...data.errors import UserError
from ...data.versions import untried

_OURS = __name__.partition(".")[0]


def check_overrides(trainer: type) -> None:
    """Raise UserError for a trainer with a method marked `override` that no library's class beneath it has."""
    theirs = [cls for cls in trainer.__mro__ if cls.__module__.partition(".")[0] != _OURS]
    for cls in trainer.__mro__:
        for name, method in vars(cls).items():
            if getattr(method, "__override__", False) and cls not in theirs and not any(name in vars(base) for base in theirs):
                raise UserError(
                    f"{theirs[0].__module__} has no {name} any more, which {trainer.__name__} hangs on: "
                    f"{untried() or 'install the versions that make setup does'}"
                )
