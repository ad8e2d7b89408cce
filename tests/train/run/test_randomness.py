import random

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, SkipBatchSampler
from torch.utils.data import BatchSampler, DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.utils import RepeatSampler

from seodang.train.run.randomness import order_by_epoch, preserve_random_state

ROWS = list(range(12))
SAMPLERS = {
    "random": lambda: SeedableRandomSampler(ROWS, data_seed=7),
    "repeated": lambda: RepeatSampler(ROWS, mini_repeat_count=2, batch_size=2, seed=7),
    "by length": lambda: LengthGroupedSampler(2, lengths=[3, 9, 4, 1, 8, 2, 7, 5, 6, 3, 2, 8]),
}


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_is_ordered_alike_whatever_was_drawn_before(kind, processes):
    def order(loader, epoch):
        order_by_epoch(loader, 7, epoch)
        return [list(batch) for batch in loader.batch_sampler]

    def batches():
        whole = BatchSampler(SAMPLERS[kind](), 2, drop_last=False)
        return whole if processes == 1 else BatchSamplerShard(whole, processes, process_index=1)

    loader = DataLoader(ROWS, batch_sampler=batches())
    first, second = order(loader, 0), order(loader, 1)
    assert first != second and order(loader, 1) == second
    resumed = DataLoader(ROWS, batch_sampler=SkipBatchSampler(batches(), skip_batches=2))  # a new process, inside the second epoch
    assert order(resumed, 1) == second[2:]


def test_random_states_are_put_back():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    undisturbed = [drawn(), drawn()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = drawn()
    with pytest.raises(KeyError), preserve_random_state(torch.device("cpu")):
        assert drawn() == undisturbed[1]  # it goes on from where it was
        raise KeyError
    assert [before, drawn()] == undisturbed
