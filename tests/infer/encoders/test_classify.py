import math
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from seodang.data.classification.encoding import EncodedText
from seodang.data.errors import UserError
from seodang.infer import classify
from seodang.infer.encoders.classify import WINDOW, Classifier, batches

WORDS = [f"w{number}" for number in range(50)]
NAMES = {0: "bad", 1: "good", 2: "meh"}


def model(**changes):
    config = AutoConfig.for_model(
        "bert", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32, pad_token_id=0,
        **{"id2label": NAMES, "label2id": {name: place for place, name in NAMES.items()}, **changes},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = AutoModelForSequenceClassification.from_config(config).double().eval()
        for parameter in found.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return found


def texts(count, longest=25):
    draw = random.Random(count)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest))) for _ in range(count)]


def plain_logits(found, tokenizer, some, pairs=None):
    """The padded batch of plain transformers."""
    with torch.no_grad():
        return found(**tokenizer(some, pairs, padding=True, truncation=True, return_tensors="pt")).logits


def test_classes_and_probabilities_are_those_of_the_plain_padded_batch(word_tokenizer):
    found, tokenizer, some = model(), word_tokenizer(WORDS), texts(60, 40)  # some are longer than the 32 positions
    said = classify(found, tokenizer, some)
    want = plain_logits(found, tokenizer, some).softmax(-1)
    got = torch.tensor([[each.probs[name] for name in NAMES.values()] for each in said], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert [each.label for each in said] == [NAMES[place] for place in want.argmax(-1).tolist()]
    assert len({each.label for each in said}) > 1
    assert [each.truncated for each in said] == [len(text.split()) > 30 for text in some]


def test_pairs_are_read_with_their_types(word_tokenizer):
    found, tokenizer = model(), word_tokenizer(WORDS)
    some, others = texts(20, 9), texts(21, 9)[:20]
    said = classify(found, tokenizer, list(zip(some, others, strict=True)))
    want = plain_logits(found, tokenizer, some, others).softmax(-1)
    assert [each.probs["good"] for each in said] == pytest.approx(want[:, 1].tolist())


@pytest.mark.parametrize("first", [0, 1])
def test_ids_without_types_share_a_pass_with_pairs(word_tokenizer, first):
    classifier = Classifier(model(), word_tokenizer(WORDS))
    [pair], [text] = classifier.encode([("w1 w2 w3", "w4 w5")]), classifier.encode(["w6 w7 w8 w9 w10 w11"[: 30 if first else 8]])
    some = [pair, EncodedText(text.input_ids, None, text.whole)]  # as ids that a client has given
    torch.testing.assert_close(classifier.logits(some), torch.cat([classifier.logits([each]) for each in (pair, text)]), rtol=0, atol=1e-12)
    assert (classifier.logits([EncodedText(pair.input_ids, None, pair.whole)]) - classifier.logits([pair])).abs().max() > 1e-3  # the types of a pair matter


def test_several_labels_and_a_number(word_tokenizer):
    tokenizer, some = word_tokenizer(WORDS), texts(12)
    several = model(problem_type="multi_label_classification")
    want = plain_logits(several, tokenizer, some)
    for threshold in (0.5, 0.9):
        border = math.log(threshold / (1 - threshold))
        said = classify(several, tokenizer, some, threshold=threshold)
        assert [each.label for each in said] == [tuple(NAMES[i] for i in range(3) if row[i] >= border) for row in want.tolist()]
    number = model(id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}, problem_type="regression")
    assert [each.label for each in classify(number, tokenizer, some)] == pytest.approx(plain_logits(number, tokenizer, some)[:, 0].tolist())


def test_a_stream_is_read_a_window_at_a_time_and_answered_in_order(word_tokenizer):
    found, tokenizer = model(), word_tokenizer(WORDS)
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield f"w{read % 50} w{read % 7}" + " w1" * (read % 11)

    answers = Classifier(found, tokenizer).stream(endless())
    some = [next(answers) for _ in range(5)]
    assert read == WINDOW
    alone = [classify(found, tokenizer, [f"w{i % 50} w{i % 7}" + " w1" * (i % 11)])[0] for i in range(1, 6)]
    assert [each.label for each in some] == [each.label for each in alone]
    assert [each.probs["bad"] for each in some] == pytest.approx([each.probs["bad"] for each in alone])


def test_a_batch_holds_so_many_tokens_when_padded():
    assert list(batches([3, 0, 1, 2], [2, 3, 9, 1], 6)) == [[3, 0], [1], [2]]


def test_a_decoder_is_asked_at_the_last_token(tiny_tokenizer):
    config = AutoConfig.for_model(
        "llama", vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0, num_labels=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = AutoModelForSequenceClassification.from_config(config).eval()
    some = ["abc", "a longer one", "b"]
    want = torch.cat([found(torch.tensor([tiny_tokenizer(text)["input_ids"]])).logits for text in some]).softmax(-1)  # each alone
    assert [each.probs["LABEL_1"] for each in classify(found, tiny_tokenizer, some)] == pytest.approx(want[:, 1].tolist(), abs=1e-6)
    config.pad_token_id = None  # without one the head takes the last of a row, so that no two rows may share a batch
    assert [each.probs["LABEL_1"] for each in classify(found, tiny_tokenizer, some)] == pytest.approx(want[:, 1].tolist(), abs=1e-6)
    with pytest.raises(UserError, match="text 2 is empty"):
        classify(found, tiny_tokenizer, ["a", ""])


def test_what_cannot_be_classified_is_refused(word_tokenizer, tiny_llama):
    found, tokenizer = model(), word_tokenizer(WORDS)
    for some, told in (("w1", "put it in a list"), (["w1", ("w1", "w2")], "some texts are pairs"), ([3], "text 1 must be a text or a pair")):
        with pytest.raises(UserError, match=told):
            classify(found, tokenizer, some)
    with pytest.raises(UserError, match="max_length is 33, but the model reads 32"):
        classify(found, tokenizer, ["w1"], max_length=33)
    with pytest.raises(UserError, match="threshold must be between 0 and 1, got 1"):
        classify(found, tokenizer, ["w1"], threshold=1)
    with pytest.raises(UserError, match="LlamaForCausalLM has no head that classifies"):
        classify(tiny_llama, tokenizer, ["w1"])
