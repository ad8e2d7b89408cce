"""Scores of many answers at once equal the plain model's of each alone, and foreign ids are refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from seodang.data.chat import prompt_ids
from seodang.data.errors import UserError
from seodang.train.attention.packed_attention import PACKED
from seodang.train.rewards.scoring import _batches, check_same_tokenizer, encode_pair, score_answers, score_ids

END = 2


@pytest.fixture
def scorer(fresh_tiny):
    """`scorer(kind)`: a random classification model of one label whose scores are well apart."""

    def build(kind="llama", **changes):
        if kind == "bloom":
            config = AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=2, n_head=4)
        else:
            config = fresh_tiny(kind, **changes).config
        config.num_labels = 1
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).float()
        for p in model.parameters():
            if p.dim() > 1:
                torch.nn.init.normal_(p, std=0.3)
        return model.eval()

    return build


def id_pairs(seed=0):
    """Three prompts in turn with 5, 1 and 2 answers, the first again at the end, one answer to it twice."""
    generator = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(4, 124, (n,), generator=generator).tolist()
    prompts = ids(9), ids(2), ids(14)
    made = [(prompt, ids(n)) for prompt, lengths in zip(prompts, ((3, 8, 1, 5, 5), (6,), (2, 7)), strict=True) for n in lengths]
    return [*made, (prompts[0], ids(4)), made[0]]


def alone(model, pairs):
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([prompt + answer])).logits[0, 0] for prompt, answer in pairs])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "bloom"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_equal_those_of_each_answer_alone_in_the_callers_order(scorer, kind, batch_size):
    model = scorer(kind).double()
    expected = alone(model, id_pairs())
    found = score_ids(model, id_pairs(), batch_size)
    assert found.dtype == torch.float64 and not found.requires_grad and torch.allclose(found, expected, atol=1e-9)
    assert found[0] == pytest.approx(found[-1].item(), abs=1e-8) and found.std() > 0.1


def test_scoring_leaves_the_model_as_it_was(scorer):
    """Its attention (padding on the left would be read wrongly by ours), its mode, its dropout."""
    model = scorer("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).train()
    before = model.config._attn_implementation
    first, second = score_ids(model, id_pairs()), score_ids(model, id_pairs())
    assert torch.equal(first, second)  # without dropout
    assert model.training and model.config._attn_implementation == before != PACKED


def test_batches_are_bounded_share_prompts_and_put_like_lengths_together():
    batches = list(_batches(id_pairs(), 4))
    assert max(sum(len(row["branches"]) for row in batch) for batch in batches) <= 4
    assert sorted(i for batch in batches for row in batch for i in row["places"]) == list(range(10))
    lengths = [len(row["prompt_ids"]) + max(map(len, row["branches"])) for batch in batches for row in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_an_adapter_counts(scorer):
    model = scorer()
    plain = score_ids(model, id_pairs())
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)).eval()
    found = score_ids(adapted, id_pairs())
    assert torch.allclose(found, alone(adapted, id_pairs()), atol=1e-5) and not torch.allclose(found, plain, atol=1e-2)


def test_texts_are_scored_as_the_ids_that_training_would_lay_out(scorer, tiny_tokenizer):
    model = scorer()
    prompts = [[{"role": "user", "content": "say a"}]] * 2 + [[{"role": "user", "content": "say b"}]]
    found = score_answers(model, tiny_tokenizer, prompts, ["aaa", "<|im_end|>", "bb"])
    whole = [f"<|im_start|>user\nsay {letter}<|im_end|>\n<|im_start|>assistant\n" for letter in "aab"]
    ids = [tiny_tokenizer(text)["input_ids"] for text in whole]
    letters = lambda text: [tiny_tokenizer.convert_tokens_to_ids(letter) for letter in text]
    answers = [letters("aaa") + [END], letters("<|im_end|>") + [END], letters("bb") + [END]]  # a special token's text is text
    assert found == pytest.approx(alone(model, list(zip(ids, answers, strict=True))).tolist(), abs=1e-5)
    cut_off = score_answers(model, tiny_tokenizer, prompts[:1], [letters("aaa")])  # ids as they are: no end of turn
    assert cut_off == pytest.approx(alone(model, [(ids[0], letters("aaa"))]).tolist(), abs=1e-5) and abs(cut_off[0] - found[0]) > 0.01


@pytest.mark.parametrize("text", ["", " "])
def test_an_answer_of_nothing_is_its_end_of_turn(scorer, tiny_tokenizer, text):
    prompt = [{"role": "user", "content": "a"}]
    ids, answer = encode_pair(tiny_tokenizer, prompt, text)
    assert ids == prompt_ids(tiny_tokenizer, prompt) and answer == tiny_tokenizer(text)["input_ids"] + [END]
    assert len(score_answers(scorer(), tiny_tokenizer, [prompt], [text])) == 1


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([([5], [6]), ([], [6])], "answer 2 has no prompt"),
        ([([5], [])], "answer 1 has no token"),
        ([([5] * 250, [6] * 7)], "answer 1 has 257 tokens with its prompt, the reward model's context only 256"),
        ([([5], [128])], "token id 128 is beyond the reward model's vocabulary of 128: its ids come from another tokenizer"),
    ],
)
def test_ids_that_cannot_be_scored_are_refused(scorer, pairs, message):
    with pytest.raises(UserError, match=message):
        score_ids(scorer(), pairs)


def test_a_language_model_is_no_reward_model(tiny, tiny_tokenizer):
    with pytest.raises(UserError, match="LlamaForCausalLM has no head that scores"):
        score_ids(tiny("llama"), [([5], [6])])
    with pytest.raises(UserError, match="1 prompts and 2 completions"):
        score_answers(tiny("llama"), tiny_tokenizer, [[]], ["a", "b"])


def test_tokenizers_are_compared_by_what_ids_mean_and_padding_may_differ(tiny_tokenizer, tokenizer):
    other = copy.deepcopy(tiny_tokenizer)
    other.pad_token = "<s>"
    check_same_tokenizer(tiny_tokenizer, other)
    other.eos_token = "<|im_start|>"
    with pytest.raises(UserError, match="eos_token_id is 2 to one and 3 to the other"):
        check_same_tokenizer(tiny_tokenizer, other)
    with pytest.raises(UserError, match="different tokenizers .*retokenise=True"):
        check_same_tokenizer(tiny_tokenizer, tokenizer)
    same_size = copy.deepcopy(tiny_tokenizer)
    state = same_size.backend_tokenizer.to_str().replace('"a":', '"swap":').replace('"b":', '"a":').replace('"swap":', '"b":')
    same_size._tokenizer = Tokenizer.from_str(state)
    assert len(same_size.get_vocab()) == len(tiny_tokenizer.get_vocab())
    with pytest.raises(UserError, match=r"'[ab]' is \d+ to one and \d+ to the other"):
        check_same_tokenizer(tiny_tokenizer, same_size)
