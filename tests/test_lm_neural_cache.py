"The neural cache against the double loop of its formula, however the text is cut."
import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from training_helpers import lm_data, lm_learner, snapshot, words

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.lm import neural_cache
from awdtext.lm.evaluate import evaluate_lm, evaluating
from awdtext.lm.neural_cache import CacheTally, NeuralCache, tune_cache
from awdtext.models.language_model import get_language_model

vocab_sz,size = 10,dict(emb_sz=6, n_hid=9, n_layers=2)


@pytest.fixture
def model():
    "In float64, with states that differ from each other."
    torch.set_num_threads(1)
    model = get_language_model(vocab_sz, size).double()
    with torch.no_grad():
        for p in model.encoder.parameters(): p *= 4
    return model


@pytest.fixture
def ids(): return torch.randint(vocab_sz, (97,)) * torch.randint(2, (97,))


def formula(h, probs, y, cache):
    "Nats of each target of one stream: the paper's two formulas, position by position."
    nats = []
    for t in range(len(y)):
        weight = [0.] * len(probs[t])
        for i in range(max(0, t - cache.window), t):
            weight[y[i]] += math.exp(cache.theta * sum(a * b for a, b in zip(h[t], h[i])))
        p = probs[t][y[t]]
        if t: p = (1 - cache.lam) * p + cache.lam * weight[y[t]] / sum(weight)
        nats.append(-math.log(p))
    return nats


def slowly(model, ids, cache, bs=1, state=None):
    "Mean of the nats of all streams, the last ones shorter or empty."
    n_steps,nats = math.ceil((len(ids) - 1) / bs), []
    for start in range(0, len(ids) - 1, n_steps):
        stream = ids[start:start + n_steps + 1]
        with evaluating(model):
            out = model(stream[None, :-1], state)
            probs = model.logits(out.dropped)[0].softmax(-1)
        nats += formula(out.raw[0].tolist(), probs.tolist(), stream[1:].tolist(), cache)
    return sum(nats) / len(nats)


caches = [NeuralCache(1, .5, .3), NeuralCache(8, 2., .5), NeuralCache(500, 1., .1), NeuralCache(12, 0., .9)]


@pytest.mark.parametrize('cache', caches, ids=str)
@pytest.mark.parametrize('bs', [1, 3, 40])
@pytest.mark.parametrize('bptt', [1, 5, 200])
def test_score_is_that_of_the_formula(model, ids, cache, bs, bptt):
    score = cache.evaluate(model, ids, bs=bs, bptt=bptt)
    assert score.n_tokens == 96
    assert score.loss == pytest.approx(slowly(model, ids, cache, bs), rel=1e-9)
    assert score.perplexity == pytest.approx(math.exp(score.loss))


@pytest.mark.parametrize('rows', [1, 4, 1000])
def test_pieces_within_a_window_of_the_text_do_not_matter(model, ids, rows, monkeypatch):
    expected = slowly(model, ids, caches[1])
    monkeypatch.setattr(neural_cache, 'chunk_rows', lambda width: rows)
    for bptt in (7, 96): assert caches[1].evaluate(model, ids, bptt=bptt).loss == pytest.approx(expected, rel=1e-9)


def test_in_float32_the_figure_does_not_depend_on_bptt(model, ids):
    model.float()
    scores = [caches[1].evaluate(model, ids, bptt=bptt).loss for bptt in (1, 2, 13, 72, 96, 1000)]
    assert max(scores) == pytest.approx(min(scores), rel=1e-6)


def test_the_first_token_is_the_models_alone(model):
    for cache in caches: assert cache.evaluate(model, [3, 4]).loss == pytest.approx(evaluate_lm(model, [3, 4]).loss)


@pytest.mark.parametrize('bs', [1, 4])
def test_without_a_share_it_is_plain_evaluation(model, ids, bs):
    score = NeuralCache(lam=0.).evaluate(model, ids, bs)
    assert score.loss == pytest.approx(evaluate_lm(model, ids, bs).loss, rel=1e-9)


def test_it_starts_from_a_state(model, ids):
    with evaluating(model): state = model(ids[None, :30]).state
    score = caches[1].evaluate(model, ids[30:], bptt=9, state=state)
    assert score.loss == pytest.approx(slowly(model, ids[30:], caches[1], state=state), rel=1e-9)
    assert abs(score.loss - caches[1].evaluate(model, ids[30:]).loss) > 1e-6


def test_it_remembers_one_integer_for_each_position_and_no_more_than_the_window():
    tally = CacheTally([2, 5], [1.], [.1])
    for n in (3, 4, 1): tally.add(torch.ones(2, n), torch.randn(2, n, 6), torch.randint(9, (2, n)))
    assert tally.words.shape == (2, 5) and tally.words.dtype == torch.long and tally.states.shape == (2, 5, 6)
    assert tally.n_tokens == 16


def test_a_word_that_the_model_rules_out_is_saved_by_the_cache(model):
    model.float()
    with torch.no_grad(): model.decoder.bias[0] = 1e6
    with_cache = NeuralCache(5, 1., .5).evaluate(model, [1] * 100).loss
    assert evaluate_lm(model, [1] * 100).loss == pytest.approx(1e6, rel=1e-5)
    assert with_cache == pytest.approx((1e6 + 98 * math.log(2)) / 99, rel=1e-3)


def test_unlikely_states_do_not_overflow_or_vanish(model):
    nll,h,y = torch.full((1, 3), 2000.), torch.tensor([[[30.], [-30.], [30.]]]), torch.tensor([[4, 5, 5]])
    tally = CacheTally([9], [1.], [.5])
    tally.add(nll, h, y)                        # at the third, 5 has the weight exp(-900) and 4 has exp(900)
    assert float(tally.nats) == pytest.approx(2000 + (2000 - math.log(.5)) + (1800 - math.log(.5)), rel=1e-6)


def test_a_grid_is_what_each_of_its_caches_says_alone_from_one_reading(model, ids):
    calls,forward = [], model.forward
    model.forward = lambda *args: calls.append(1) or forward(*args)
    tried = tune_cache(model, ids, windows=iter((3, 30)), thetas=(0., 2.), lams=(0., .2, .6), bs=2, bptt=48)
    assert len(calls) == 1 and len(tried) == len({point.settings for point in tried}) == 12
    for cache, score in tried: assert score.loss == pytest.approx(cache.evaluate(model, ids, bs=2).loss, rel=1e-9)
    assert [score.loss for _, score in tried] == sorted(score.loss for _, score in tried)


@pytest.mark.parametrize('kwargs, match', [
    (dict(window=0), 'window=0'), (dict(window=2.5), 'window=2.5'), (dict(theta=-.1), 'theta=-0.1'),
    (dict(theta=math.inf), 'theta=inf'), (dict(theta=math.nan), 'theta=nan'), (dict(lam=1.), 'lam=1.0'),
    (dict(lam=-.1), 'lam=-0.1'), (dict(lam=math.nan), 'lam=nan'), (dict(lam=None), 'lam=None'),
    (dict(theta='1'), "theta='1'"), (dict(theta=(.1, .2)), r'theta=\(0.1, 0.2\)')])
def test_settings_that_cannot_be(model, kwargs, match):
    with pytest.raises(ValueError, match=match): NeuralCache(**kwargs)
    grid = {f'{name}s': [value] for name, value in kwargs.items()}
    with pytest.raises(ValueError, match=match): tune_cache(model, [1, 2, 3], **grid)


def test_wrong_calls_leave_the_model_as_it_is(model):
    before = snapshot(model)
    for bad, match in (([1, 10], '0 to 9'), ([1], 'at least two tokens'), (torch.zeros(2, 2), r'\(2, 2\)')):
        with pytest.raises(ValueError, match=match): caches[0].evaluate(model, bad)
    with pytest.raises(ValueError, match='bptt=0'): caches[0].evaluate(model, [1, 2], bptt=0)
    with pytest.raises(ValueError, match='nothing to try'): tune_cache(model, [1, 2, 3], windows=())
    assert model.training and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError): NeuralCache().lam = .2
    assert NeuralCache() == NeuralCache(3785, .662, .1279)


def test_learner_evaluates_every_part_with_a_cache():
    dls = TextDataLoaders.from_tokens([words(300)], [words(90, seed=1)], [words(80, seed=2)], bs=4, seq_len=16, seed=0)
    learn,cache = lm_learner(dls), NeuralCache(20, 1., .2)
    for part, n in (('train', 299), ('valid', 89), ('test', 79)):
        score = learn.evaluate(part, cache=cache)
        assert score.n_tokens == n
        assert score.loss == pytest.approx(slowly(learn.model, getattr(dls, part).corpus.ids, cache), rel=1e-5)
    assert learn.evaluate([words(30)], bs=2, cache=cache).n_tokens == 29
    plain = learn.evaluate('test').loss
    assert plain == pytest.approx(slowly(learn.model, dls.test.corpus.ids, NeuralCache(lam=0.)), rel=1e-5)
    assert learn.evaluate('test', cache=NeuralCache(lam=0.)).loss == pytest.approx(plain, rel=1e-6)


def test_learner_tunes_on_validation_data_with_the_weights_that_validation_saw():
    learn = lm_learner(lm_data(), averaging=None)
    learn.fit(1)
    tried = learn.tune_cache(windows=(5, 50), thetas=(.5,), lams=(.1, .3))
    assert len(tried) == 4
    for point in tried:
        assert learn.evaluate(cache=point.settings).loss == pytest.approx(point.score.loss, rel=1e-6)
