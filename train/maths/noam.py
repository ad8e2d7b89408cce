"""The learning rate that the Transformer was first trained with, and how it is asked for by the name that transformers has for it."""


def noam(step: int, d_model: int, warmup_steps: int) -> float:
    """Return d_model^-0.5 x min(step^-0.5, step x warmup_steps^-1.5), steps counted from 1 (Vaswani et al. 2017, section 5.3).

    A run has it by `--lr_scheduler_type inverse_sqrt --warmup_steps W --learning_rate P`, P being the peak, `noam(W, d_model, W)`, which is
    (d_model x W)^-0.5. transformers counts its updates from 0: the first changes nothing, the one behind it has the rate of step 1. Raises ValueError
    for a step or a warmup below 1.

    >>> round(noam(4000, d_model=512, warmup_steps=4000), 6)
    0.000699
    """
    if step < 1 or warmup_steps < 1:
        raise ValueError(f"step and warmup_steps must be at least 1, got {step} and {warmup_steps}")
    return d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)
