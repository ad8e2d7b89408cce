"""The loop against one written out, what is given, what stands beside, seeds, clamping and what is refused."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.diffusion_lm.gaussian import path
from seodang.infer.diffusion_lm.model import Denoising
from seodang.infer.diffusion_lm.sampling import Sampling, denoise, sample

FREE = [None] * 6


@torch.no_grad()
def by_hand(model, canvas, seed, steps, eta, clamp_from=0):
    """One row in plain torch: the words nearest to the latents after each step, and the latents themselves."""
    generator, size = torch.Generator().manual_seed(seed), (len(canvas), model.config.embedding_size)
    draw = lambda: torch.randn(size, generator=generator, dtype=torch.float64)
    words, abar = model.word_embeddings.weight, model.abar
    given = torch.tensor([[id is not None] for id in canvas])
    clean = words[[id or 0 for id in canvas]]
    x = torch.where(given, abar[-1].sqrt() * clean, torch.zeros(size, dtype=torch.float64)) + (1 - abar[-1]).sqrt() * draw()
    nearest = lambda latents: torch.cdist(latents, words).argmin(dim=-1)
    found = []
    points = path(model.config.diffusion_steps, steps)
    for now, then in zip(points, points[1:]):
        x0 = model(x[None], torch.tensor([now])).clean[0]
        if now <= clamp_from:
            x0 = words[nearest(x0)]
        x0 = torch.where(given, clean, x0)
        sigma2 = eta**2 * (1 - abar[then]) / (1 - abar[now]) * (1 - abar[now] / abar[then])
        noise = (x - abar[now].sqrt() * x0) / (1 - abar[now]).sqrt()
        x = abar[then].sqrt() * x0 + (1 - abar[then] - sigma2).clamp_min(0).sqrt() * noise + sigma2.sqrt() * draw()
        last = x @ words.T + model.rounding_bias
        found.append([id if id is not None else int(each) for id, each in zip(canvas, nearest(x) if then else last.argmax(dim=-1))])
    return found


@pytest.mark.parametrize(("eta", "steps", "clamp_from", "canvas"), [(1.0, 20, 0, FREE), (0.0, 7, 0, [None, 4, None, None, 1, 0]), (0.5, 10, 12, FREE)])
def test_the_loop_equals_one_written_out(tiny_lm, eta, steps, clamp_from, canvas):
    model = tiny_lm()
    torch.nn.init.normal_(model.rounding_bias)
    history = list(denoise(model, [canvas], Sampling(steps, eta, clamp_from), seeds=[3]))
    assert [each.words[0] for each in history] == by_hand(model, canvas, 3, steps, eta, clamp_from)
    assert [each.step for each in history] == path(20, steps)[1:]
    assert len({tuple(each.words[0]) for each in history}) > 2  # or there were nothing to compare


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clamp_from", [0, 20])
def test_what_is_given_never_changes(tiny_lm, eta, clamp_from):
    canvases = [[7, None, None, 2, None], [None, None, 9]]
    for each in denoise(tiny_lm(), canvases, Sampling(10, eta, clamp_from), seeds=[0, 1]):
        for rows in (each.words, each.predicted):
            assert rows[0][0] == 7 and rows[0][3] == 2 and rows[1][2] == 9
        assert each.logprobs[0][0] == each.logprobs[1][2] == 0.0


def test_a_row_is_what_it_is_alone_whatever_stands_beside_it_and_by_its_own_seed(tiny_lm):
    model, canvases, seeds = tiny_lm(), [FREE, [None] * 3, [None, 5, None, None], [None]], [5, 6, 7, 8]
    together = list(denoise(model, canvases, Sampling(20), seeds=seeds))
    for place, (canvas, seed) in enumerate(zip(canvases, seeds)):
        alone = list(denoise(model, [canvas], Sampling(20), seeds=[seed]))
        assert [each.words[place] for each in together] == [each.words[0] for each in alone]
        assert torch.allclose(torch.tensor([each.logprobs[place] for each in together]), torch.tensor([each.logprobs[0] for each in alone]), atol=1e-12)
    assert sample(model, [FREE, FREE], Sampling(20), seeds=[5, 9])[0] == together[-1].words[0]
    histories = [[each.words[0] for each in denoise(model, [FREE], Sampling(20), seeds=[seed])] for seed in (5, 5, 9)]
    assert histories[0] == histories[1] != histories[2]


@torch.no_grad()
def test_rounding_is_tied_and_nearest_is_nearest(tiny_lm):
    model = tiny_lm()
    latents = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    words = model.word_embeddings.weight
    assert torch.equal(model.nearest(latents), (latents[:, None] - words).square().sum(dim=-1).argmin(dim=-1))
    assert not torch.equal(model.nearest(latents), model.rounding(latents).argmax(dim=-1))  # longer embeddings draw, but are not nearer
    model.rounding_bias.data[4] = 2.0
    assert model.rounding(latents)[7, 4] == pytest.approx(float(latents[7] @ words[4] + 2))
    assert torch.equal(model.nearest(words), torch.arange(11))


@pytest.mark.parametrize("clamp_from", [0, 20])
def test_barred_words_are_not_found_and_may_be_given(tiny_lm, clamp_from):
    model, settings = tiny_lm(), Sampling(20, clamp_from=clamp_from)
    free = sample(model, [FREE] * 4, settings, seeds=range(4))
    barred = sorted({id for row in free for id in row})
    assert len(barred) < 10
    for each in denoise(model, [[barred[0], *FREE[1:]]] * 4, settings, seeds=range(4), barred=barred):
        assert all(row[0] == barred[0] and not set(row[1:]) & set(barred) for rows in (each.words, each.predicted) for row in rows)


def test_clamped_from_a_step_on_the_latents_come_from_embeddings_alone(tiny_lm, monkeypatch):
    """Without noise the last latents are what was predicted: exactly embeddings where it was clamped."""
    model = tiny_lm()
    halfway = model.word_embeddings.weight[[3, 8]] * 0.9 + model.word_embeddings.weight[[8, 3]] * 0.1
    assert model.nearest(halfway).tolist() == [3, 8]
    calls = []

    def predict(latents, steps, mask=None):
        calls.append((int(steps[0]), latents.clone()))
        return Denoising(clean=halfway.expand(len(latents), 2, 6))

    monkeypatch.setattr(model, "forward", predict)
    *_, = denoise(model, [[None, None]], Sampling(4, 0.0, clamp_from=10), seeds=[0])
    steps, (x15, x10, x5) = [step for step, _ in calls], [latents for _, latents in calls[1:]]
    abar, words = model.abar, model.word_embeddings.weight[[3, 8]]
    assert steps == [20, 15, 10, 5]
    for clean, then, now, x_then, x_now in ((halfway, 10, 15, x10, x15), (words, 5, 10, x5, x10)):  # 15 is before the start of clamping, 10 is in it
        noise = (x_now - abar[now].sqrt() * clean) / (1 - abar[now]).sqrt()
        assert torch.allclose(x_then, abar[then].sqrt() * clean + (1 - abar[then]).sqrt() * noise)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps must be from 1 to 20, those that the model was trained with, got 0"),
        ({"steps": 21}, "steps must be from 1 to 20, those that the model was trained with, got 21"),
        ({"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"clamp_from": 21}, "clamp_from must be from 0 to 20"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_pass(tiny_lm, settings, said):
    with pytest.raises(UserError, match=said):
        denoise(tiny_lm(), [FREE], Sampling(**settings), seeds=[0])


@pytest.mark.parametrize(
    ("canvas", "said"),
    [([None] * 9, "canvas 2 has 9 positions, the model takes 1 to 8"), ([], "canvas 2 has 0 positions"), ([11], "canvas 2 holds the id 11, beyond the model's vocabulary of 11")],
)
def test_canvases_that_the_model_cannot_take_are_refused(tiny_lm, canvas, said):
    with pytest.raises(UserError, match=said):
        denoise(tiny_lm(), [FREE, canvas], seeds=[0, 1])
