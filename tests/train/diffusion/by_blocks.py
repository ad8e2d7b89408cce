"""What a diffusion model says of an answer, or of a block of it, computed plainly: a pass for it alone, under a mask written out."""

import torch


def block_logits(model, says, prompt, answer, block, masked):
    """The logits that each token of a block is read from, [block, vocab]: the blocks before it have no masks, the later ones are not there.

    Of a model without blocks the answer is one.
    """
    ids = prompt + answer[: block.start] + [says.mask_token_id if hidden else answer[place] for place, hidden in zip(block, masked, strict=True)]
    first = 0 if says.attention == "bidirectional" else len(prompt)
    number = torch.tensor([(place - first) // (says.block_length or len(ids)) for place in range(len(ids))])  # below 0 in a causal prompt
    place = torch.arange(len(ids))
    visible = torch.where(number[:, None] < 0, place[None] <= place[:, None], number[None] <= number[:, None])
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill(~visible, torch.finfo(model.dtype).min)[None, None]
    logits = model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0]
    begin = len(prompt) + block.start - says.shift
    return logits[begin : begin + len(block)]
