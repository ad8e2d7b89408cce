"""Rows that are read while training."""

from collections.abc import Callable, Iterable, Iterator

from torch.utils.data import IterableDataset

from ..data.labels import Row


class StreamedRows(IterableDataset):
    """Rows from a function that starts the stream anew each time; a resumed run reads past what it has trained on."""

    def __init__(self, start: Callable[[], Iterable[Row]]):
        self.start = start

    def __iter__(self) -> Iterator[Row]:
        return iter(self.start())
