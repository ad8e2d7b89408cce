"""What is said where the memory of a device does not suffice for a batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import Trainer

from ...data.errors import UserError
from ...infer.kernels.device import is_out_of_memory


@contextmanager
def memory_named(trainer: Trainer, name: str, beside: str) -> Iterator[None]:
    """Raise a UserError, with the batch size that is called so, in place of the error of a memory that does not suffice."""
    args = trainer.args
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) or args.auto_find_batch_size:  # which the Trainer lowers by itself
            raise
        raise UserError(
            f"out of memory at step {trainer.state.global_step + 1} with {name} {getattr(args, name)}: lower it and {beside}, or give --activation_checkpointing true "
            f"or a lower --max_length; --dry_run memory says what will fit; the last checkpoint is intact ({' '.join(str(error).split()):.200})"
        ) from error
