"""What a trainer's own loss makes of one whole batch."""


def gradients(trainer, rows):
    """The loss and the gradient of each parameter that has one."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(rows)))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
