"Dynamic evaluation against its rule, written out parameter by parameter."
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from test_lm_neural_cache import formula
from training_helpers import Do, assert_same, lm_data, lm_learner, snapshot, words

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.lm import dynamic_eval
from awdtext.lm.dynamic_eval import DynamicEvaluation, dynamic_evaluate, gradient_statistics, tune_dynamic
from awdtext.lm.evaluate import evaluate_lm
from awdtext.lm.neural_cache import NeuralCache, tune_cache
from awdtext.models.language_model import get_language_model
from awdtext.text_learner import load_learner
from awdtext.training.precision import MixedPrecision
from awdtext.training.rnn import ASGD

vocab_sz,size = 11,dict(emb_sz=5, n_hid=7, n_layers=2)


def new_model(**config):
    torch.set_num_threads(1)
    model = get_language_model(vocab_sz, {**size, **config}).double()
    with torch.no_grad():
        for p in model.encoder.parameters(): p *= 3
    return model


@pytest.fixture(params=[dict(), dict(tie_weights=False), dict(out_bias=False)], ids=str)
def model(request): return new_model(**request.param)


@pytest.fixture
def train(): return torch.randint(vocab_sz, (203,)) * torch.randint(2, (203,))


@pytest.fixture
def ids(): return torch.randint(vocab_sz, (53,)) * torch.randint(2, (53,))


class Slowly:
    "A model, reading: mean loss of each window, and the gradient of each parameter by backward()."
    def __init__(self, model): self.model,self.state = deepcopy(model).eval(), None

    def read(self, x, y):
        self.model.zero_grad()
        out = self.model(x, self.state)
        self.state = [(h.detach(), c.detach()) for h, c in out.state]
        logits = F.linear(out.raw, self.weight(), getattr(self.model.decoder, 'bias', None))
        loss = F.cross_entropy(logits.transpose(1, 2), y)
        loss.backward()
        grads = {name: p.grad for name, p in self.model.named_parameters()}
        return loss.item(), grads, out.raw[0], logits[0].softmax(-1)

    def weight(self):
        own = self.model.decoder.weight
        return self.model.encoder.embedding.weight if own is None else own


def slow_statistics(model, ids, bs, bptt):
    "Root of the mean square of each gradient; `ids` fill `bs` rows."
    reader,squares = Slowly(model), {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    x,y = ids[:-1].view(bs, -1), ids[1:].view(bs, -1)
    windows = list(zip(x.split(bptt, 1), y.split(bptt, 1)))
    for window in windows:
        for name, g in reader.read(*window)[1].items(): squares[name] += g**2 / len(windows)
    return {name: s**.5 for name, s in squares.items()}


def slowly(model, ids, stats, lr, decay, eps, bptt, cache=None):
    "Mean nats per token, by the rule as it is printed."
    reader,nats,seen = Slowly(model), [], ([], [], [])
    mean = sum(s.mean().item() for s in stats.values()) / len(stats)
    theta0 = snapshot(model)
    for i in range(0, len(ids) - 1, bptt):
        n = min(bptt, len(ids) - 1 - i)
        loss,grads,h,probs = reader.read(ids[None, i:i + n], ids[None, i + 1:i + n + 1])
        nats += [loss] * n
        for kept, new in zip(seen, (h, probs, ids[i + 1:i + n + 1])): kept.extend(new.tolist())
        for name, p in reader.model.named_parameters():
            D = (stats[name] / mean).clamp(max=1 / decay if decay else math.inf)
            p.data = p.data + decay * D * (theta0[name] - p.data) - lr * grads[name] / (stats[name] + eps)
    if cache: nats = formula(*seen, cache)
    return sum(nats) / len(nats)


settings = [dict(lr=.01, decay=.01, eps=1e-3, bptt=5), dict(lr=.02, decay=.9, eps=1e-2, bptt=7),
            dict(lr=.01, decay=0., eps=1e-3, bptt=1), dict(lr=.01, decay=.1, eps=1e-3, bptt=30)]


@pytest.mark.parametrize('bs, bptt', [(1, 5), (2, 101), (101, 2), (2, 30)])
def test_statistics_are_those_of_the_loop(model, train, bs, bptt):
    stats = gradient_statistics(model, train, bs, bptt)
    expected = slow_statistics(model, train, bs, bptt)
    assert list(stats) == list(expected) == [name for name, _ in model.named_parameters()]
    for name, s in stats.items(): torch.testing.assert_close(s, expected[name], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize('kwargs', settings, ids=str)
def test_score_is_that_of_the_rule(model, train, ids, kwargs):
    stats = slow_statistics(model, train, 2, 5)
    sizes = [s.mean() for s in stats.values()]
    clipped = max(s.max() for s in stats.values()) / (sum(sizes) / len(sizes)) > 1 / max(kwargs['decay'], 1e-9)
    assert clipped == (kwargs['decay'] >= .1)                                   # with and without a limit to the return
    score = dynamic_evaluate(model, ids, stats, **kwargs)
    assert score.n_tokens == 52
    assert score.loss == pytest.approx(slowly(model, ids, stats, **kwargs), rel=1e-9)
    assert abs(score.loss - evaluate_lm(model, ids).loss) > 1e-4


@pytest.mark.parametrize('kwargs', settings[:2], ids=str)
def test_a_cache_remembers_the_states_of_the_moving_model(train, ids, kwargs):
    model,cache = new_model(), NeuralCache(20, 2., .4)
    stats = slow_statistics(model, train, 2, 5)
    score = dynamic_evaluate(model, ids, stats, **kwargs, cache=cache)
    assert score.loss == pytest.approx(slowly(model, ids, stats, **kwargs, cache=cache), rel=1e-9)


@pytest.mark.parametrize('bptt', [1, 5, 100])
def test_without_steps_it_is_plain_evaluation(model, train, ids, bptt):
    stats = gradient_statistics(model.float(), train)
    score = dynamic_evaluate(model, ids, stats, lr=0., bptt=bptt)
    assert score.loss == pytest.approx(evaluate_lm(model, ids).loss, rel=1e-6)


def test_a_window_is_scored_before_it_is_learned_from(model, train, ids):
    stats = gradient_statistics(model, train)
    plain = evaluate_lm(model, ids[:11]).loss
    assert dynamic_evaluate(model, ids[:11], stats, lr=.1, bptt=10).loss == pytest.approx(plain, rel=1e-12)
    assert abs(dynamic_evaluate(model, ids[:11], stats, lr=.1, bptt=9).loss - plain) > 1e-6


def test_it_starts_from_a_state(model, train, ids):
    stats,state = gradient_statistics(model, train), model.eval()(ids[None, :20]).state
    kept = [(h.clone(), c.clone()) for h, c in state]
    score = dynamic_evaluate(model, ids[20:], stats, lr=0., state=state)
    assert score.loss == pytest.approx(evaluate_lm(model, ids[20:], state=state).loss, rel=1e-9)
    assert all(torch.equal(a, b) for pair in zip(state, kept) for a, b in zip(*pair))


def test_a_frozen_model_moves_as_well_and_stays_frozen(model, train, ids):
    expected = dynamic_evaluate(model, ids, gradient_statistics(model, train), **settings[0])
    for p in model.encoder.parameters(): p.requires_grad_(False)
    with torch.no_grad(): stats = gradient_statistics(model, train)
    with torch.no_grad(): assert dynamic_evaluate(model, ids, stats, **settings[0]) == expected
    assert not any(p.requires_grad for p in model.encoder.parameters()) and model.training


def test_the_model_is_the_same_to_the_last_bit_also_when_interrupted(model, train, ids, monkeypatch):
    before,stats = snapshot(model), gradient_statistics(model, train)
    for p in model.parameters(): p.grad = torch.ones_like(p)                    # somebody's
    dynamic_evaluate(model, ids, stats, **settings[0])
    steps,move = [], dynamic_eval.move
    def interrupt(*args):
        move(*args)
        steps.append(args[0][0].clone())
        if len(steps) == 3: raise KeyboardInterrupt
    monkeypatch.setattr(dynamic_eval, 'move', interrupt)
    with pytest.raises(KeyboardInterrupt): dynamic_evaluate(model, ids, stats, **settings[0])
    assert not torch.equal(steps[0], steps[2])                                  # the copy did move
    assert_same(before, snapshot(model))
    assert model.training and all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_a_grid_is_what_each_says_alone_and_what_diverged_is_last(train, ids):
    model = new_model().float()
    stats = gradient_statistics(model, train)
    tried = tune_dynamic(model, ids, stats, lrs=(1e30, 0., .01), decays=iter((0., .1)), eps=1e-3, bptt=6)
    assert len(tried) == 6 and {point.settings.lr for point in tried[-2:]} == {1e30}
    for s, score in tried[:-2]:
        assert score == dynamic_evaluate(model, ids, stats, s.lr, s.decay, 1e-3, 6)
    assert tried[0].score.loss == min(score.loss for _, score in tried[:-2])
    with pytest.raises(ValueError, match='nothing to try'): tune_dynamic(model, ids, stats, lrs=())


@pytest.mark.parametrize('kwargs, match', [
    (dict(lr=-1.), 'lr=-1.0'), (dict(lr=math.nan), 'lr=nan'), (dict(decay=-.1), 'decay=-0.1'),
    (dict(eps=0.), 'eps=0.0'), (dict(lr=None), 'lr=None'), (dict(eps='1'), "eps='1'"),
    (dict(decay=math.inf), 'decay=inf'), (dict(bptt=0), 'bptt=0')])
def test_settings_that_cannot_be(kwargs, match):
    with pytest.raises(ValueError, match=match): DynamicEvaluation(**kwargs)
    with pytest.raises(ValueError, match=match): dynamic_evaluate(new_model(), [1, 2], {}, **kwargs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    model = new_model()
    stats = gradient_statistics(model, [1, 2, 3])
    model.to(dtype)
    match = rf'{str(dtype)[6:]} cannot hold: .* to_fp32\(\)'
    with pytest.raises(ValueError, match=match): gradient_statistics(model, [1, 2, 3])
    with pytest.raises(ValueError, match=match): dynamic_evaluate(model, [1, 2, 3], stats)
    assert model.decoder.bias.dtype == dtype


def test_statistics_of_another_model_are_refused(train):
    model = new_model()
    before,stats = snapshot(model), gradient_statistics(model, train)
    wider,untied = (gradient_statistics(new_model(**c), train) for c in (dict(n_hid=8), dict(tie_weights=False)))
    nan = {name: s * math.nan for name, s in stats.items()}
    for bad, match in ((wider, r'rnns.0.weight_ih_l0 has the shape \(32, 5\) there and \(28, 5\) here'),
                       (untied, r'decoder.weight has the shape \(11, 5\) there and None here'),
                       ({}, 'None there'), (nan, 'the mean nan')):
        with pytest.raises(ValueError, match=match): dynamic_evaluate(model, train, bad)
        with pytest.raises(ValueError, match=match): tune_dynamic(model, train, bad)
    with pytest.raises(ValueError, match='the ids 0 to 10'): dynamic_evaluate(model, [11, 1], stats)
    with pytest.raises(ValueError, match='the ids 0 to 10'): gradient_statistics(model, [11, 1])
    assert_same(before, snapshot(model))


def test_learner_takes_the_statistics_from_its_training_part():
    dls = TextDataLoaders.from_tokens([words(300)], [words(90, seed=1)], [words(80, seed=2)], bs=4, seq_len=16, seed=0)
    learn = lm_learner(dls)
    learn.fit(1)
    before,dynamic = snapshot(learn.model), DynamicEvaluation(lr=1e-3, eps=1e-3)
    stats = gradient_statistics(learn.model, dls.train.corpus.ids)
    expected = dynamic_evaluate(learn.model, dls.test.corpus.ids, stats, lr=1e-3, eps=1e-3)
    assert learn.evaluate('test', dynamic=dynamic) == learn.evaluate('test', dynamic=dynamic, stats=stats) == expected
    assert abs(expected.loss - learn.evaluate('test').loss) > 1e-4
    cache = NeuralCache(20, 1., .2)
    both = dynamic_evaluate(learn.model, dls.test.corpus.ids, stats, lr=1e-3, eps=1e-3, cache=cache)
    assert learn.evaluate('test', dynamic=dynamic, cache=cache) == both != expected
    tried = learn.tune_dynamic(lrs=(0., 1e-3), decays=(.01,), n_tokens=50)
    assert [point.score.n_tokens for point in tried] == [49, 49]
    assert_same(before, snapshot(learn.model))


def test_amid_training_learner_evaluates_its_averages_and_goes_on_with_its_iterate():
    seen,dynamic,cache = [], DynamicEvaluation(lr=0.), NeuralCache(9, 1., .2)
    def look(learn):
        ids,before = learn.dls.valid.corpus.ids, snapshot(learn.model)
        stats = gradient_statistics(learn.model, [1, 2, 3])
        ours = [learn.evaluate(dynamic=dynamic, stats=stats), learn.evaluate(cache=cache)]
        assert_same(before, snapshot(learn.model))
        with learn.averaged(): averages = [evaluate_lm(learn.model, ids), cache.evaluate(learn.model, ids)]
        seen.append([score.loss for score in (*ours, *averages, evaluate_lm(learn.model, ids))])
    lm_learner(lm_data(), averaging=ASGD(start=1)).fit(2, cbs=Do('after_train', look))
    for moved, cached, average, average_cached, iterate in seen:
        assert moved == pytest.approx(average, rel=1e-6) and cached == pytest.approx(average_cached, rel=1e-6)
        assert abs(average - iterate) > 1e-4


def test_learner_refuses_what_cannot_be(tmp_path):
    learn = lm_learner(lm_data())
    before = snapshot(learn.model)
    with pytest.raises(ValueError, match='bs=4: dynamic'): learn.evaluate(bs=4, dynamic=DynamicEvaluation())
    for name in ('fp16', 'bf16'):
        learn.precision = MixedPrecision(name)
        match = rf'lost in {name}: call to_fp32\(\)'
        with pytest.raises(ValueError, match=match): learn.evaluate(dynamic=DynamicEvaluation())
        with pytest.raises(ValueError, match=match): learn.tune_dynamic(stats={})
    assert learn.to_fp32().evaluate(dynamic=DynamicEvaluation()).n_tokens == learn.evaluate().n_tokens
    assert_same(before, snapshot(learn.model))
    there = load_learner(learn.export(tmp_path / 'model'))
    with pytest.raises(ValueError, match='no train part'): there.evaluate([words(9)], dynamic=DynamicEvaluation())
    stats = gradient_statistics(learn.model, learn.dls.train.corpus.ids)
    assert there.evaluate([words(9)], dynamic=DynamicEvaluation(), stats=stats).n_tokens == 8


def test_statistics_that_are_none_are_told(ids):
    model = new_model()
    before = snapshot(model)
    for stats in (None, [], 3):
        with pytest.raises(TypeError, match=r'no gradient statistics: make them with gradient_statistics'):
            dynamic_evaluate(model, ids, stats)
    assert_same(snapshot(model), before)


def test_a_number_is_a_grid_of_one(train, ids):
    model = new_model()
    stats = gradient_statistics(model, train)
    assert tune_dynamic(model, ids, stats, 1e-4, .002) == tune_dynamic(model, ids, stats, [1e-4], [.002])
    assert tune_cache(model, ids, 9, .3, .2) == tune_cache(model, ids, [9], [.3], [.2])
