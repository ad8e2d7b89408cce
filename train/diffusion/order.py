"""Rows that know as the how manieth of which epoch they were drawn: what their noise hangs on, whoever collates them and wherever a run begins again."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler
from typing_extensions import override

from ...data.labels import Row
from ..stages.sft import StreamedRows

DRAWN = "drawn"  # the key of a row's epoch and place in it
NUMBER = "number"  # the key of its place among all rows, whatever the epoch


class Drawn(int):
    """An index with the epoch and the place in its order; it goes through batch samplers, of several processes too, to the data set."""

    epoch: int
    place: int


class NumberedSampler(Sampler[Drawn]):
    """The indices of another sampler, each with its epoch and place."""

    def __init__(self, sampler: Sampler[int]):
        self.sampler, self.epoch = sampler, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch with the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Drawn]:
        for place, index in enumerate(self.sampler):
            drawn = Drawn(index)
            drawn.epoch, drawn.place = self.epoch, place
            yield drawn


class DrawnByNumber:
    """Stands before a trainer among a class's bases: its rows know when they were drawn."""

    @override
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        sampler = super()._get_train_sampler(*args, **kwargs)
        return None if sampler is None else NumberedSampler(sampler)


class NumberedRows(Dataset):
    """Rows that say, drawn by such an index, when they were drawn."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {**row, DRAWN: (index.epoch, index.place)} if isinstance(index, Drawn) else row


class NumberedStream(StreamedRows):
    """A stream's rows with their places; every worker and every process reads the whole stream and counts alike."""

    def __init__(self, stream: StreamedRows):
        super().__init__(self._numbered, stream.batch, stream.longest)
        self.stream, self.epoch = stream, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch with the next iteration."""
        self.epoch = epoch

    def _numbered(self) -> Iterator[dict[str, Any]]:
        return ({**row, DRAWN: (self.epoch, place)} for place, row in enumerate(self.stream.start()))
