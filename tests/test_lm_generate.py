"Generation: the law of each word, the cost of each word, and the same words as the slow way."
import itertools
from collections import Counter

import pytest
import torch
from torch.testing import assert_close
from training_helpers import lm_learner

from awdtext.lm.generate import generate, word_probs
from awdtext.models.language_model import get_language_model

size = dict(emb_sz=8, n_hid=12, n_layers=2)


@pytest.fixture
def model():
    torch.set_num_threads(1)
    return get_language_model(20, size)


def slow_probs(model, ids):
    "The distribution of the next word, after reading everything again."
    model.eval()
    with torch.no_grad(): return model.logits(model(torch.tensor([ids])).dropped)[0, -1].softmax(-1)


def test_cost_grows_with_the_words_and_not_with_their_square(model):
    read = []
    model.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    for n in (1, 10, 50):
        read.clear()
        assert len(list(generate(model, [1, 2, 3, 4], n))) == n
        assert read == [4] + [1] * (n - 1), "the prompt once, then one word at a time"


def test_nothing_is_read_before_it_is_asked_for(model):
    read = []
    model.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    words = generate(model, [1, 2], 10**9)
    assert read == []
    assert len(list(itertools.islice(words, 3))) == 3 and len(read) == 3


def test_a_learners_prediction_is_linear_too():
    learn,read = lm_learner(),[]
    learn.model.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    learn.predict('w1 w2 w3', 20)
    assert sum(read) == 3 + 19


def test_greedy_words_are_those_of_the_slow_way(model):
    for prompt in ([3], [3, 1, 4, 1, 5]):
        ids = list(prompt)
        for word in generate(model, prompt, 25, temperature=0):
            assert word == int(slow_probs(model, ids).argmax())
            ids.append(word)


def test_draws_follow_the_models_distribution(model):
    with torch.no_grad(): model.decoder.bias.copy_(torch.randn(20))
    expected = slow_probs(model, [3, 1, 4])
    n = 1500
    drawn = Counter(next(generate(model, [3, 1, 4], 1, seed=i)) for i in range(n))
    sd = (expected * (1 - expected) / n).sqrt()
    observed = torch.tensor([drawn[i] / n for i in range(20)])
    assert ((observed - expected).abs() < 5 * sd + 1e-3).all()


def test_seeds(model):
    first = list(generate(model, [1], 30, seed=1))
    assert first == list(generate(model, [1], 30, seed=1)) != list(generate(model, [1], 30, seed=2))
    torch.manual_seed(7)
    second = list(generate(model, [1], 30))
    torch.manual_seed(7)
    assert second == list(generate(model, [1], 30))
    before = torch.get_rng_state()
    list(generate(model, [1], 30, seed=1))
    assert torch.equal(torch.get_rng_state(), before), "a seeded generation leaves the global generator alone"


def test_mode_and_gradients_are_as_before_also_between_words(model):
    model.train()
    words = generate(model, [1], 3)
    next(words)
    assert model.training and torch.is_grad_enabled()
    model.eval()
    next(words)
    assert not model.training


def test_forbidden_words_are_never_drawn(model):
    allowed = {4, 7}
    forbidden = [i for i in range(20) if i not in allowed]
    assert set(generate(model, [1], 60, forbidden=forbidden, seed=0)) == allowed
    assert set(generate(model, [1], 20, temperature=0, forbidden=forbidden)) <= allowed
    with pytest.raises(ValueError, match="Every word is forbidden"):
        list(generate(model, [1], 1, forbidden=list(range(20))))


def test_empty_prompt(model):
    with pytest.raises(ValueError, match="prompt is empty"): list(generate(model, [], 1))
    assert list(generate(model, [1], 0)) == []


# The distribution

def slowly_filtered(p, top_k, min_p):
    best = max(range(len(p)), key=lambda i: p[i])
    def passes(v): return (top_k is None or sum(w > v for w in p) < top_k) and (min_p is None or v >= min_p)
    kept = [v if i == best or passes(v) else 0. for i, v in enumerate(p)]
    return [v / sum(kept) for v in kept]


@pytest.mark.parametrize('temperature', [.5, 1., 3.])
@pytest.mark.parametrize('top_k', [None, 1, 3, 100])
@pytest.mark.parametrize('min_p', [None, 0., .1, 1.])
def test_filters_are_the_definitions(temperature, top_k, min_p):
    z = torch.randn(4, 9)
    probs = word_probs(z, temperature, top_k, min_p)
    for row, logits in zip(probs, z):
        p = (logits.double() / temperature).softmax(-1).tolist()
        assert_close(row.double(), torch.tensor(slowly_filtered(p, top_k, min_p)).double(), rtol=1e-4, atol=1e-6)
    assert_close(probs.sum(-1), torch.ones(4))


def test_extreme_scores_stay_numbers():
    z = torch.tensor([[1e4, 0., -torch.inf]])
    for t in (1e-6, 0., 1.): assert_close(word_probs(z, t), torch.tensor([[1., 0., 0.]]))
    assert word_probs(z, .7).isfinite().all()


@pytest.mark.parametrize('kwargs', [
    dict(temperature=-.1), dict(top_k=0), dict(top_k=-1), dict(min_p=1.1), dict(min_p=-.1)], ids=str)
def test_wrong_settings(kwargs):
    with pytest.raises(ValueError, match=f"{list(kwargs)[0]}="): word_probs(torch.zeros(1, 3), **kwargs)
