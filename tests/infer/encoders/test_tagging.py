import itertools
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForTokenClassification, TokenClassificationPipeline

from seodang.data.errors import UserError
from seodang.data.tagging.schemes import spans_of, tag_names
from seodang.infer import Entity, tag_texts
from seodang.infer.encoders.classify import WINDOW
from seodang.infer.encoders.tagging import Tagger, likeliest_tags, transitions

NAMES = tag_names(["LOC", "PER"])
WORDS = ["the", "capital", "of", "korea", "is", "seoul", "paris", "suwon", "a", "city", "unbelievable", ".", ","]


def model(kind="bert", names=NAMES, seed=0, **changes):
    settings = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **settings, id2label=dict(enumerate(names)), label2id={name: place for place, name in enumerate(names)}, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = AutoModelForTokenClassification.from_config(config).double().eval()
        for parameter in found.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.35)
    return found


def texts(count, longest=12):
    draw = random.Random(count)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest))) for _ in range(count)]


# Decoding


def test_the_likeliest_tags_are_those_of_a_search_over_all_sequences():
    draw, allowed, changed = torch.Generator().manual_seed(0), transitions(NAMES), 0
    for length in (1, 2, 3, 4) * 12:
        logprobs = torch.randn(length, len(NAMES), generator=draw, dtype=torch.float64).log_softmax(-1)
        valid = [path for path in itertools.product(range(len(NAMES)), repeat=length) if may_stand([NAMES[tag] for tag in path])]
        want = max(valid, key=lambda path: sum(logprobs[place, tag].item() for place, tag in enumerate(path)))
        assert tuple(likeliest_tags(logprobs, allowed).tolist()) == want
        changed += want != tuple(logprobs.argmax(-1).tolist())
    assert changed > 10  # in which the likeliest tag of each token would have stood alone


def may_stand(tags):
    return all(not tag.startswith("I-") or before[2:] == tag[2:] for before, tag in zip(["O", *tags], tags, strict=False))


def test_a_model_without_a_b_for_its_i_may_begin_by_i():
    """As models of IOB1 were published: an I- begins an entity where the label has no B-."""
    assert transitions(["O", "I-LOC", "I-PER", "B-PER"]).tolist()[0] == [True, True, False, True]
    logprobs = torch.tensor([[0.1, 0.9], [0.2, 0.8]]).log()
    assert likeliest_tags(logprobs, transitions(["O", "I-LOC"])).tolist() == [1, 1]


# Entities


def in_order(found):
    return [(each["start"], each["end"], each["entity_group"], each["score"]) for each in found]


@pytest.mark.parametrize("aggregation", ["first", "simple"])
def test_entities_are_those_of_the_plain_pipeline_where_its_tags_are_in_order(wordpiece, aggregation):
    """By words as its "first", by tokens as its "simple"; elsewhere the pipeline begins an entity by an I-."""
    found, some, compared = model(), texts(80), 0
    pipeline = TokenClassificationPipeline(model=found, tokenizer=wordpiece, aggregation_strategy=aggregation, device="cpu")
    single = TokenClassificationPipeline(model=found, tokenizer=wordpiece, aggregation_strategy="none", ignore_labels=[], device="cpu")
    said = tag_texts(found, wordpiece, some, all_subwords=aggregation == "simple")
    for text, entities in zip(some, said, strict=True):
        tags = [each for each in single(text) if aggregation == "simple" or not each["word"].startswith("##")]
        if may_stand([each["entity"] for each in tags]):
            assert [(each.start, each.end, each.label) for each in entities] == [each[:3] for each in in_order(pipeline(text))]
            assert [each.score for each in entities] == pytest.approx([each[3] for each in in_order(pipeline(text))], abs=1e-9)
            compared += bool(entities)
        assert all(each.text == text[each.start : each.end] for each in entities)
    assert compared > 15


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_a_text_has_the_entities_that_it_has_alone_in_any_company(wordpiece, kind):
    ids = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": None, "eos_token_id": None} if kind == "modernbert" else {}
    found, some = model(kind, **ids), texts(30)
    together, alone = tag_texts(found, wordpiece, some), [tag_texts(found, wordpiece, [text])[0] for text in some]
    assert [[(each.start, each.end, each.label) for each in entities] for entities in together] == [[(e.start, e.end, e.label) for e in entities] for entities in alone]
    assert [each.score for entities in together for each in entities] == pytest.approx([each.score for entities in alone for each in entities], abs=1e-9)


def test_a_text_longer_than_the_model_is_read_to_its_end(wordpiece):
    found = model()
    [text] = texts(1, 1)
    long = " ".join(texts(40))
    tagger = Tagger(found, wordpiece, stride=8)
    [encoded] = tagger.encode([long])
    assert len(encoded.windows) > 5 and max(len(window.input_ids) for window in encoded.windows) == 40
    [logits] = tagger.logits([encoded])
    with torch.no_grad():
        want = torch.cat([found(torch.tensor([window.input_ids])).logits[0][list(window.asked)] for window in encoded.windows])
    torch.testing.assert_close(logits, want, rtol=1e-9, atol=1e-10)
    [entities] = tag_texts(found, wordpiece, [long], stride=8)
    assert entities[-1].end > len(long) * 0.9 and entities == tagger.said(long, encoded, logits)
    assert tag_texts(found, wordpiece, [text, ""])[1] == []


def test_a_checkpoint_says_whether_every_token_has_a_tag(wordpiece):
    found = model(label_all_subwords=True)
    assert len(Tagger(found, wordpiece).encode(["unbelievable"])[0].units) == 3
    assert len(Tagger(found, wordpiece, all_subwords=False).encode(["unbelievable"])[0].units) == 1
    assert len(Tagger(model(), wordpiece).encode(["unbelievable"])[0].units) == 1


def test_the_score_is_the_mean_probability_of_the_tags_taken(wordpiece):
    tagger = Tagger(model(), wordpiece)
    [encoded] = tagger.encode(["seoul is a city"])
    logits = torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1], [0.2, 0.1, 0.5, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1, 0.1], [0.3, 0.1, 0.1, 0.1, 0.4]]).log()
    assert spans_of(["B-LOC", "I-LOC", "O", "O"]) == [(0, 2, "LOC")]  # an I-PER may not begin one: O is the likeliest that may stand there
    [entity] = tagger.said("seoul is a city", encoded, logits)
    assert (entity.start, entity.end, entity.label, entity.text) == (0, 8, "LOC", "seoul is") and entity.score == pytest.approx(0.55)


def test_a_stream_is_read_a_window_at_a_time(wordpiece):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield "seoul is a city"

    answers = Tagger(model(), wordpiece).stream(endless())
    assert isinstance(next(answers), list) and read == WINDOW


def test_what_cannot_be_tagged_is_refused(wordpiece, tiny_llama):
    with pytest.raises(UserError, match="put it in a list"):
        tag_texts(model(), wordpiece, "seoul")
    with pytest.raises(UserError, match="text 1 must be a text, got 3"):
        tag_texts(model(), wordpiece, [3])
    with pytest.raises(UserError, match="max_length is 41, but the model reads 40"):
        tag_texts(model(), wordpiece, ["seoul"], max_length=41)
    with pytest.raises(UserError, match="LlamaForCausalLM has no head that tags tokens"):
        tag_texts(tiny_llama, wordpiece, ["seoul"])
    with pytest.raises(UserError, match="the model tells apart NOUN, VERB, and 'NOUN' is no tag"):
        tag_texts(model(names=["NOUN", "VERB"]), wordpiece, ["seoul"])
    broken = model()
    with torch.no_grad():
        broken.classifier.bias[0] = torch.nan
    with pytest.raises(UserError, match="logits that are no numbers"):
        tag_texts(broken, wordpiece, ["seoul"])


def test_an_entity_is_a_plain_value():
    assert Entity(0, 5, "LOC", "seoul", 0.5) == Entity(0, 5, "LOC", "seoul", 0.5)
