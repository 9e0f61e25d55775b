"The guard: which batch it was, which weights remain; with averages, a checkpoint's folder and mixed precision too."
import math

import pytest
import torch
from torch.testing import assert_close
from training_helpers import Do, assert_same, lm_data, lm_learner, plain_learner, snapshot, tiny_size, two_classes

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import language_model_learner, text_classifier_learner
from awdtext.training.guards import LossGuard, LossTrend, read_again
from awdtext.training.losses import binary_cross_entropy_loss, cross_entropy_loss, mse_loss
from awdtext.training.precision import MixedPrecision
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import ASGD, GradientClip


def guarded(learn, **how):
    "`learn` with a guard of other settings."
    return learn.remove_cb(LossGuard).add_cb(LossGuard(**how))


def spoil(when):
    "Makes the gradient of one step infinite: its loss was a number, the next one is none."
    def act(learn):
        grads = [p.grad for p in learn.model.parameters() if p.grad is not None]
        if learn.iter == when: grads[0].fill_(torch.inf)
    return Do('before_step', act, order=10**6)


class Seen(Do):
    "The weights that each batch began with."
    def __init__(self):
        self.weights = []
        super().__init__('before_batch', lambda learn: learn.training and self.weights.append(snapshot(learn.model)))


def test_weights_spoilt_by_a_step_come_back():
    learn,seen = guarded(plain_learner(two_classes(200)), keep=5),Seen()
    with pytest.raises(FloatingPointError, match=r'loss became nan in epoch 0, batch 14 .* last good ones again'):
        learn.fit(1, cbs=[seen, spoil(13)])
    assert_same(snapshot(learn.model), seen.weights[10])   # copied at batches 0, 5 and 10
    learn.fit(1)                                          # and can be trained on
    assert math.isfinite(learn.record[-1]['train_loss'])


def test_a_batch_whose_loss_is_no_number_spoils_nothing():
    data = two_classes(200)
    data.train[7][0][0] = torch.nan
    learn,seen = guarded(plain_learner(data), keep=5),Seen()
    with pytest.raises(FloatingPointError, match=r'became nan in epoch 0, batch 7 .* those before this batch'):
        learn.fit(1, cbs=seen)
    assert_same(snapshot(learn.model), seen.weights[7])
    assert learn.x[0].isnan().all()                       # which is there to be looked at


def test_a_batch_that_spoils_what_batch_norm_remembers():
    data = two_classes(200)
    data.train[7][0][0] = torch.nan
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    learn = guarded(plain_learner(data, model=model), keep=5)
    with pytest.raises(FloatingPointError, match='the last good ones again'): learn.fit(1)
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())
    assert learn.model[0].num_batches_tracked == 6, "the copy is of the sixth batch"


def test_reading_again_leaves_no_trace():
    learn = lm_learner()
    kept = []
    def look(learn):
        if not learn.training: return
        names = 'x', 'y', 'out', 'preds', 'loss', 'state'
        before = {name: getattr(learn, name) for name in names}, torch.get_rng_state()
        with torch.no_grad():
            again = read_again(learn, (learn.x, learn.y))
            alone = learn.model.eval()(learn.x)
            kept.append((again, learn.model.loss(alone.dropped, learn.y).item()))
            learn.model.train()
        assert all(getattr(learn, name) is value for name, value in before[0].items())
        assert torch.equal(before[1], torch.get_rng_state())
    learn.fit(1, cbs=Do('after_loss', look, order=100))
    assert len(kept) == learn.n_iter and all(a == pytest.approx(b, rel=1e-6) for a, b in kept)


def test_an_explosion_is_ended_and_undone():
    learn,seen = guarded(plain_learner(two_classes(2000)), keep=20),Seen()
    raise_lr = Do('before_batch', lambda learn: learn.opt.param_groups[0].update(lr=1e4 if learn.iter > 100 else .1))
    with pytest.raises(FloatingPointError, match=r'The loss exploded: it was 0\.\d+ on average') as e:
        learn.fit(1, cbs=[seen, raise_lr])
    held = learn.model.weight.detach().clone()
    k = next(i for i, weights in enumerate(seen.weights) if torch.equal(weights['weight'], held))
    assert 80 <= k <= 101 and 'last good ones again' in str(e.value)
    assert learn.validate()[0] < 1


def test_the_average_comes_back_with_the_iterate():
    means = []
    learn = guarded(plain_learner(two_classes(200), cbs=ASGD(start=2)), keep=5)
    keep_mean = lambda learn: means.append(learn.average and snapshot(learn.average.mean))
    look = Do('before_batch', keep_mean)
    with pytest.raises(FloatingPointError, match='last good ones again'): learn.fit(1, cbs=[look, spoil(13)])
    assert_same(snapshot(learn.model), means[10])
    assert learn.average.n == 9 and learn.average.swapped, "the iterates after steps 2 to 10"
    learn.fit(1)
    assert all(p.isfinite().all() for p in learn.model.parameters())


def test_a_message_quotes_the_text():
    learn = language_model_learner(lm_data(), config=tiny_size).remove_cb(ProgressCallback)
    with pytest.raises(FloatingPointError, match=r"whose first text begins 'w\d+ w\d+ "):
        learn.fit(1, 1e-2, cbs=spoil(2))
    texts,labels = ['good film', 'bad film'] * 8, ['pos', 'neg'] * 8
    dls = TextDataLoaders.from_texts(texts, labels, bs=4, min_freq=1, seed=0)
    clas = text_classifier_learner(dls, config=tiny_size).remove_cb(ProgressCallback)
    with pytest.raises(FloatingPointError, match=r"batch 2 .*whose first text begins 'xxbos (good|bad) film'"):
        clas.fit(1, 1e-2, cbs=spoil(1))


def test_in_lots_the_batch_is_named_exactly():
    data = two_classes(200)
    data.train[7][0][0] = torch.nan
    for every in (1, 3, 5, 50):
        learn = guarded(plain_learner(data), every=every)
        with pytest.raises(FloatingPointError, match='epoch 0, batch 7 '): learn.fit(1)


def test_steps_that_mixed_precision_leaves_out_are_no_reason():
    learn = plain_learner(two_classes(200))
    learn.precision = MixedPrecision('fp16')
    overflow = Do('after_backward', lambda learn: learn.iter == 9 and learn.model.weight.grad.fill_(torch.inf))
    seen = Seen()
    learn.fit(1, cbs=[overflow, seen])
    assert_same(seen.weights[10], seen.weights[9])
    assert len(learn.record) == 1 and not torch.equal(seen.weights[11]['weight'], seen.weights[10]['weight'])


def test_a_killed_run_goes_on_with_its_trend(tmp_path):
    def kill(learn):
        if (learn.epoch, learn.iter) == (1, 3): raise RuntimeError('killed')
    def run(folder, cbs=None):
        learn = lm_learner()
        try: learn.fit(2, .1, cbs=cbs, checkpoint=folder, every='4steps')
        except RuntimeError: pass
        return learn
    whole,killed = run(tmp_path / 'a'), run(tmp_path / 'b', Do('after_loss', kill))
    assert len(killed.record) == 1
    resumed = run(tmp_path / 'b')
    trends = [next(cb.trend for cb in learn.cbs if isinstance(cb, LossGuard)) for learn in (whole, resumed)]
    assert trends[0].n == trends[1].n and trends[0].mean == trends[1].mean and trends[0].lowest == trends[1].lowest
    assert_same(snapshot(resumed.model), snapshot(whole.model))


def test_the_range_test_of_rates_may_explode():
    learn = plain_learner(two_classes(2000))
    learn.lr_find(1e-3, 1e6, num_it=60, stop_div=False, show_plot=False)


def test_what_is_no_explosion():
    "The mean is the plain formula's, and losses of any scale that wander do not trip it."
    g = torch.Generator().manual_seed(0)
    for low, high in ((.001, .3), (2., 12.), (4., 5.)):
        losses,trend = (low + (high - low) * torch.rand(3000, generator=g).pow(4)).tolist(), LossTrend()
        for loss in losses:
            trend.add(loss)
            assert not trend.exploded
        weights = torch.tensor(.98, dtype=torch.float64) ** torch.arange(2999, -1, -1)
        mean = (torch.tensor(losses, dtype=torch.float64) * weights).sum() / weights.sum()
        assert_close(trend.mean, mean.item(), rtol=1e-2, atol=0)


def test_losses_of_very_different_batches_are_no_explosion():
    "Squared errors of a target with a long tail: one of the first batches may be far below the mean of all."
    g = torch.Generator().manual_seed(0)
    for scale in (1., 100., 1e4):
        for _ in range(60):
            trend = LossTrend()
            for loss in (torch.randn(300, generator=g).exp() * scale).tolist(): trend.add(loss)
            assert not trend.exploded, scale


@pytest.mark.parametrize('start', [2, 5, 10, 40])
def test_an_explosion_is_seen_from_the_first_batches_on(start):
    trend = LossTrend()
    for i in range(start + 60): trend.add(4. if i < start else 400.)
    assert trend.exploded


@pytest.mark.parametrize('how', [dict(every=0), dict(every=-1), dict(keep=0), dict(keep=2.5), dict(factor=1.)], ids=str)
def test_guards_that_cannot_be(how):
    with pytest.raises(ValueError, match=f'{list(how)[0]}='): LossGuard(**how)


# The first batches

@pytest.mark.parametrize('lr', [1e3, 1e5])
def test_an_explosion_of_the_first_steps_is_ended_and_undone(lr):
    "Nothing was low before it, so it is the first batch's loss that it is compared with."
    learn,seen = guarded(plain_learner(two_classes(200)), keep=5),Seen()
    with pytest.raises(FloatingPointError, match=r'exploded: it was 0\.\d+ in the first batch and now is') as e:
        learn.fit(1, lr, cbs=seen)
    assert 5 <= learn.iter < 20 and 'last good ones again' in str(e.value)
    assert_same(snapshot(learn.model), seen.weights[0])


def test_a_language_model_whose_first_steps_explode():
    learn = lm_learner().remove_cb(GradientClip)
    with pytest.raises(FloatingPointError, match=r'exploded: it was \d\.\d+ in the first batch'): learn.fit(9, 1e4)
    assert learn.validate()[0] < 4, "of 20 words"


@pytest.mark.parametrize('seed', range(5))
def test_healthy_first_steps_are_no_explosion(seed):
    "Rates too high to learn well, but for which the losses come back, and the usual ones."
    for lr in (.1, 1., 30.):
        learn = lm_learner(lr=lr)
        torch.manual_seed(seed)
        for p in learn.model.parameters(): p.data += .1 * torch.randn_like(p)
        learn.fit(2)
        torch.manual_seed(seed)
        plain_learner(two_classes(200), lr=lr).fit(1)


def test_squared_errors_have_no_scale_that_their_first_batch_could_tell():
    g = torch.Generator().manual_seed(0)
    dls = two_classes(160)
    dls.train = [(x, (9. if i else .1) * torch.randn(len(x), 1, generator=g)) for i, (x, _) in enumerate(dls.train)]
    dls.valid = [(x, y[:, None].float()) for x, y in dls.valid]
    learn = plain_learner(dls, model=torch.nn.Linear(3, 1), loss_func=mse_loss(), lr=1e-3)
    learn.fit(1)
    assert len(learn.record) == 1


def test_a_run_killed_while_its_first_losses_explode_goes_on_counting(tmp_path):
    def run(kill=None):
        learn = plain_learner(two_classes(200))
        try: learn.fit(1, 1e4, cbs=kill, checkpoint=tmp_path, every='1steps')
        except RuntimeError: return None
        except FloatingPointError: return learn.iter
    def at_four(learn):
        if learn.iter == 4: raise RuntimeError('killed')
    whole = guarded(plain_learner(two_classes(200)))
    with pytest.raises(FloatingPointError): whole.fit(1, 1e4)
    assert run(Do('after_loss', at_four, order=-10**3)) is None and run() == whole.iter


def test_only_losses_in_nats_are_judged_by_their_first():
    kinds = [(cross_entropy_loss(), True), (binary_cross_entropy_loss(), True), (mse_loss(), False)]
    assert [loss.in_nats for loss, _ in kinds] == [judged for _, judged in kinds]
    for high, n, exploded in ((13., 5, False), (15., 4, False), (15., 5, True)):
        trend = LossTrend(in_nats=True)
        for loss in [4., *[high] * n]: trend.add(loss)
        assert trend.exploded == exploded
