"""What masked diffusion learns from: which tokens are masked, how they weigh, how long an answer's canvas is."""

import difflib
import math
from dataclasses import dataclass, field

from ...data.errors import UserError
from ...infer.diffusion.masking import SCHEDULES

WEIGHTINGS = ("one_over_t", "cart", "uniform")


@dataclass(frozen=True)
class DenoisingObjective:
    """The corruption of answers and the weights of what is masked. Raises UserError for a value out of range."""

    schedule: str = field(default="linear", metadata={"help": "How many are masked: linear (LLaDA, Dream) or cosine (MDLM)."})
    weighting: str = field(
        default="one_over_t", metadata={"help": "Of masked tokens: one_over_t (LLaDA, MDLM), cart (Dream) or uniform. The first is the likelihood's bound, cart counts clean context nearby."}
    )
    cart_p: float = field(default=0.3, metadata={"help": "cart: how fast context counts less with distance, in (0, 1)."})
    max_weight: float = field(default=12.0, metadata={"help": "No masked token weighs more; 0 for no bound. Few masks that weigh much make training unsteady."})
    complementary: bool = field(default=False, metadata={"help": "Each record twice, with complementary masks. Less variance at twice the cost."})
    co_loss: float = field(default=0.0, metadata={"help": "Weight of a left-to-right loss, to speak so too."})
    canvas: int | None = field(default=None, metadata={"help": "Answers fill a multiple of this: 32, or whole blocks."})
    crop: bool = field(default=True, metadata={"help": "Cut what was filled up at random. So it does not outweigh the answers."})
    eval_draws: int = field(default=4, metadata={"help": "Masks that each held-out record is measured with. They are the same at each evaluation."})

    def __post_init__(self) -> None:
        for name, known in (("schedule", tuple(SCHEDULES)), ("weighting", WEIGHTINGS)):
            if (value := getattr(self, name)) not in known:
                near = difflib.get_close_matches(str(value), known, n=1)
                raise UserError(f"there is no {name} {value!r}: " + (f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"))
        for name, fits, wanted in (
            ("cart_p", 0 < self.cart_p < 1, "between 0 and 1"),
            ("max_weight", 0 <= self.max_weight < math.inf, "at least 0"),
            ("co_loss", 0 <= self.co_loss < math.inf, "at least 0"),
            ("canvas", self.canvas is None or self.canvas >= 1, "at least 1"),
            ("eval_draws", self.eval_draws >= 1, "at least 1"),
        ):
            if not fits:
                raise UserError(f"{name} must be {wanted}, got {getattr(self, name)}")
