"""Guidance against torch's own Adagrad and gradients by hand; controls and what they refuse."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.diffusion_lm.gaussian import Normal
from seodang.infer.diffusion_lm.guidance import Guidance, all_of, guided, label_control, word_control
from seodang.infer.diffusion_lm.sampling import Sampling, denoise
from seodang.train.diffusion_lm.classifier import new_classifier

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_the_first_update_follows_the_sign_of_the_gradient_by_hand():
    """log p(c | x) = log sigmoid(w x): its gradient is w (1 - sigmoid(w x)); Adagrad's first step has the rate's length in each coordinate."""
    weights, latents = torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([[[0.5, 0.25]]], dtype=F64)
    log_prob = lambda x: torch.nn.functional.logsigmoid((x[:, 0] * weights).sum(dim=-1))
    free = torch.ones(1, 1, dtype=torch.bool)
    moved = guided(latents, Normal(latents, torch.tensor(1.0)), log_prob, free, Guidance(updates=1, rate=0.1, fluency=0.0))
    assert torch.allclose(moved, torch.tensor([[[0.6, 0.15]]], dtype=F64), atol=1e-8)
    score = 0.6 * 1 + 0.15 * -2
    assert float(log_prob(moved)) == pytest.approx(float(torch.tensor(score).sigmoid().log())) and log_prob(moved) > log_prob(latents)
    second = guided(latents, Normal(latents, torch.tensor(1.0)), log_prob, free, Guidance(updates=2, rate=0.1, fluency=0.0))
    first_gradient, gradient = 1 - torch.tensor(0.0).sigmoid(), 1 - torch.tensor(score).sigmoid()  # times w in each coordinate
    assert torch.allclose(second - moved, 0.1 * gradient / (first_gradient**2 + gradient**2).sqrt() * weights.sign(), atol=1e-6)


def test_updates_are_those_of_torchs_adagrad_on_condition_and_fluency():
    latents, mean, variance, weights = drawn(2, 3, 4), drawn(2, 3, 4, seed=1), torch.tensor(0.3, dtype=F64), drawn(4, seed=2)
    log_prob = lambda x: torch.nn.functional.logsigmoid((x * weights).sum(dim=(1, 2)))
    moved = guided(latents, Normal(mean, variance), log_prob, torch.ones(2, 3, dtype=torch.bool), Guidance(4, 0.2, 0.05))
    x = latents.clone().requires_grad_()
    optimizer = torch.optim.Adagrad([x], lr=0.2, eps=1e-10)
    for _ in range(4):
        optimizer.zero_grad()
        (0.05 * ((x - mean) ** 2 / (2 * variance)).sum() - log_prob(x).sum()).backward()
        optimizer.step()
    assert torch.allclose(moved, x.detach(), atol=1e-9) and not moved.requires_grad


def test_fluency_holds_latents_where_the_model_expects_them_and_what_is_not_free_stays():
    latents, free = drawn(1, 2, 4), torch.tensor([[True, False]])
    log_prob = lambda x: x.sum(dim=(1, 2))
    loose, held = (guided(latents, Normal(latents, torch.tensor(0.1, dtype=F64)), log_prob, free, Guidance(20, 0.1, fluency)) for fluency in (0.0, 10.0))
    assert torch.equal(loose[0, 1], latents[0, 1]) and torch.equal(held[0, 1], latents[0, 1])
    assert (held - latents).norm() < 0.2 * (loose - latents).norm()


def test_behind_every_step_a_classifiers_label_becomes_likelier_and_rows_are_guided_as_alone(tiny_lm):
    model = tiny_lm()
    classifier, told = classifier_of(model), []
    control = label_control(classifier, "yes", model)

    def followed(latents, steps, mask):
        found = control(latents, steps, mask)
        assert torch.allclose(found, classifier(latents, steps, mask).logits.softmax(dim=-1)[:, 1].log())
        told.append((int(steps[0]), found.detach()))
        return found

    canvases, seeds, settings = [[None] * 6, [None, 3, None]], [0, 1], Sampling(5, guidance=Guidance(4, 0.02, 0.0))
    rows = [each.words for each in denoise(model, canvases, settings, seeds=seeds, control=followed)]
    assert [step for step, _ in told] == [step for step in (16, 12, 8, 4) for _ in range(4)]  # not behind the last: that is the text
    for begun in range(0, 16, 4):
        assert (told[begun + 3][1] > told[begun][1]).all()
    assert all(each[1][1] == 3 for each in rows)
    for place in (0, 1):
        alone = denoise(model, canvases[place : place + 1], settings, seeds=seeds[place : place + 1], control=control)
        assert [each.words[0] for each in alone] == [each[place] for each in rows]


def classifier_of(model, labels=("no", "yes")):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = new_classifier(model, labels, 32, 1).double().eval()
    for name, parameter in classifier.named_parameters():
        if parameter.dim() > 1 and "word" not in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return classifier


def test_a_wanted_word_is_as_likely_as_the_models_own_rounding_says_and_gets_likelier(tiny_lm):
    model, latents, steps, mask = tiny_lm(), drawn(2, 5, 6), torch.tensor([7, 7]), torch.ones(2, 5)
    control = word_control(model, [(1, 4), (3, 9)])
    with torch.no_grad():
        logprobs = (model(latents, steps, mask).clean @ model.word_embeddings.weight.T).log_softmax(dim=-1)
        assert torch.allclose(control(latents, steps, mask), logprobs[:, 1, 4] + logprobs[:, 3, 9])
        assert torch.allclose(all_of([control, control])(latents, steps, mask), 2 * control(latents, steps, mask))
    moved = guided(latents, Normal(latents, torch.tensor(1.0)), lambda x: control(x, steps, mask), mask.bool(), Guidance(5, 0.1, 0.0))
    with torch.no_grad():
        assert (control(moved, steps, mask) > control(latents, steps, mask)).all()
    assert all_of([]) is None


def test_unknown_labels_other_models_and_settings_out_of_range_are_refused(tiny_lm):
    model = tiny_lm()
    with pytest.raises(UserError, match="the classifier knows no label 'maybe': choose no, yes"):
        label_control(classifier_of(model), "maybe", model)
    with pytest.raises(UserError, match="the classifier was trained on the latents of another model"):
        label_control(classifier_of(tiny_lm(seed=1)), "yes", model)
    with pytest.raises(UserError, match="a classifier tells two labels apart or more, got same"):
        new_classifier(model, ["same", "same"][:1])
    for name, value in (("updates", 0), ("rate", 0.0), ("fluency", -1.0)):
        with pytest.raises(UserError, match=f"{name} must be .*got {value}"):
            Guidance(**{name: value})
