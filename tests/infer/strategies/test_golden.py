"""The golden files and their models under this version of transformers."""

import pytest


@pytest.mark.parametrize("name", ["contrastive", "dola", "group_beam", "constrained_beam"])
def test_golden_models_compute_the_logits_that_made_the_files(golden, name):
    cases = golden(name)  # compares the logits of every model
    assert len(cases) > 40
    for model, case in cases:
        assert 0 < max(map(len, case["sequences"])) <= case["options"]["max_new_tokens"]
        assert all(0 <= id < model.config.vocab_size for ids in case["sequences"] for id in ids)
