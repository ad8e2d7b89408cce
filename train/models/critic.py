"""The critic of PPO: a linear head on the policy's own hidden states, or a model of its own."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from ...infer.runners.architecture import transformers_model
from ..attention.packed_attention import PACKED

CRITIC = "critic"  # its name in the policy's module tree, and its folder in a checkpoint
FILE = "critic.safetensors"


class ValueHead(nn.Module):
    """One linear layer that reads the policy's hidden states; it begins at 0, so that it says nothing before it has learned."""

    def __init__(self, hidden_size: int, like: Tensor):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, *args, **kwargs) -> Tensor:
        """[answer tokens, hidden] to values, [answer tokens] in float32 at least."""
        values = self.linear(hidden).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))


class ValueModel(nn.Module):
    """A model with a head of one label that reads the same batch as the policy, layers of its own and all (Ouyang et al. 2022 begin with the reward model)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        if getattr(model, "score", None) is None or model.config.num_labels != 1:
            raise UserError(f"{type(model).__name__} has no head of one label: give a reward model as value_model")
        self.model = model

    def forward(self, hidden: Tensor, *args, predictors: Tensor, **kwargs) -> Tensor:
        """The value at each place of `predictors`, [answer tokens] in float32 at least; the policy's hidden states are not read."""
        own = getattr(self.model, self.model.base_model_prefix)(*args, use_cache=False, **kwargs).last_hidden_state
        values = self.model.score(own.flatten(0, 1).index_select(0, predictors)).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))


def attach_critic(policy: nn.Module, value_model: PreTrainedModel | None = None) -> nn.Module:
    """Give the policy a critic, which its forward pass asks for values from then on; it trains with the policy. Returns it.

    Raises UserError for a value model of another vocabulary.
    """
    inner = transformers_model(policy)
    weight = inner.get_input_embeddings().weight
    if value_model is None:
        critic: nn.Module = ValueHead(inner.config.get_text_config().hidden_size, weight)
    else:
        theirs = value_model.get_input_embeddings().weight.shape[0]
        if theirs != weight.shape[0]:
            raise UserError(f"the value model has a vocabulary of {theirs}, the policy of {weight.shape[0]}: use one with the policy's tokenizer")
        critic = ValueModel(value_model.to(weight.device).requires_grad_(True))
        if inner.config._attn_implementation == PACKED:
            value_model.set_attn_implementation(PACKED)
    inner.critic = critic
    return critic


def without_critic(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A policy's state without its critic's part: what a plain checkpoint holds."""
    return {name: value for name, value in state.items() if f".{CRITIC}." not in f".{name}"}


def critics_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The critic's state in that of a policy."""
    parts = ((f".{name}".partition(f".{CRITIC}."), value) for name, value in state.items())
    return {own: value for (_, found, own), value in parts if found}


def save_critic(state: dict[str, Tensor], checkpoint: Path) -> None:
    """Write the critic's state into a folder of its own in a checkpoint, where no loader of the policy looks."""
    folder = checkpoint / CRITIC
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in state.items()}, folder / FILE, metadata={"format": "pt"})


def load_critic(critic: nn.Module, checkpoint: Path) -> None:
    """Read it back; raises UserError where the checkpoint has none or another."""
    path = checkpoint / CRITIC / FILE
    if not path.is_file():
        raise UserError(f"{checkpoint} holds no critic ({CRITIC}/{FILE}): it is no checkpoint of PPO, use --resume never")
    try:
        critic.load_state_dict(load_file(path, device=str(next(critic.parameters()).device)))
    except RuntimeError as error:
        raise UserError(f"{path} is the critic of another run ({str(error).splitlines()[0]}): use the same value model, or --resume never") from None
