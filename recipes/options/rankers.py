"""Who ranks answers, by the name on the command line."""

from dataclasses import dataclass

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.train.rewards.ranking import FunctionRanker, JudgeRanker, PersonRanker, Ranker
from seodang.train.rewards.rules import CheckedReward, Reward, parse_reward

FORMS = "rule:REWARD (as rule:length:8), FILE.py:FUNCTION, judge:MODEL or person"


@dataclass(frozen=True)
class RankerName:
    """A ranker before it is opened; `reward` is its function where it is one, which then can judge single answers too."""

    text: str
    reward: Reward | None = None

    def open(self, device: str, dtype: str) -> Ranker:
        """The ranker itself; a judge's model is loaded."""
        if self.reward is not None:
            return FunctionRanker(self.reward)
        if self.text == "person":
            return PersonRanker()
        return JudgeRanker(*load(self.text.removeprefix("judge:"), device=device, dtype=dtype))


def name_ranker(text: str) -> RankerName:
    """Read `rule:length:8`, `file.py:function`, `judge:MODEL` or `person`; raises UserError for anything else, before a model is loaded."""
    if text == "person" or (text.startswith("judge:") and text != "judge:"):
        return RankerName(text)
    if text.startswith("rule:") or ".py:" in text:
        return RankerName(text, CheckedReward(parse_reward(text.removeprefix("rule:"))))
    raise UserError(f"ranker {text!r} is unknown: give {FORMS}")
