"""Control tokens stand where the model wrote them, whatever a stop text or an unfinished character holds back."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from seodang.infer.parsing.control_text import ControlText
from seodang.infer.requests.stop import AnswerText
from seodang.infer.text.detokenise import detokeniser


def byte_fallback() -> PreTrainedTokenizerFast:
    """Bytes for what is not in the vocabulary, as in Llama 2's tokenizer: a run of them is held until it ends."""
    names = ["<unk>", "<s>", "<end>", "▁", "a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<end>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["bytes", "byte fallback"])
def test_control_tokens_stand_where_they_were_written(kind, wordy_tokenizer):
    tokenizer, draw = wordy_tokenizer if kind == "bytes" else byte_fallback(), random.Random(7)
    control = {tokenizer.bos_token_id: "<s>"}
    ids_of = {each: tokenizer.encode(each, add_special_tokens=False) for each in "ab나"}
    assert len(ids_of["나"]) == 3
    cut = moved = 0
    for _ in range(600):
        written = draw.choices(["a", "b", "나", "<s>"], [3, 3, 1, 2], k=draw.randint(1, 9))
        stop = "".join(draw.choices("ab나", [3, 3, 1], k=draw.randint(2, 3)))
        text = AnswerText(detokeniser(tokenizer), [stop])
        known = ControlText(text.endless(), control)
        ids = [id for each in written for id in ids_of.get(each, [tokenizer.bos_token_id])]
        said = at_once = ""
        for id in [*ids, tokenizer.eos_token_id]:
            piece = text.finish() if id == tokenizer.eos_token_id else text.push(id)
            said += known.push(id, piece)
            at_once += piece + control.get(id, "")
            if text.stopped:
                break
        plain = "".join(each for each in written if each != "<s>")
        end = plain.find(stop) if stop in plain else len(plain)
        wanted, place = "", 0
        for each in written:
            wanted += each if each == "<s>" and place <= end or each != "<s>" and place < end else ""
            place += each != "<s>"
        assert said == wanted, (written, stop)
        cut, moved = cut + (stop in plain), moved + (at_once != wanted)
    assert cut > 50 and moved > 50  # both happen


def test_an_answer_of_which_a_part_belongs_to_the_prompt(wordy_tokenizer):
    text = AnswerText(detokeniser(wordy_tokenizer), ["bx"], skip=1)
    known, shown = ControlText(text.endless(), {wordy_tokenizer.bos_token_id: "<s>"}), []
    for id in [*wordy_tokenizer.encode("ab", add_special_tokens=False), wordy_tokenizer.bos_token_id, *wordy_tokenizer.encode("c", add_special_tokens=False)]:
        shown.append(known.push(id, text.push(id)))
    assert shown == ["", "", "", "b<s>c"]
