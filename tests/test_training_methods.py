"The methods around `fit`: what they set, that they can be resumed, and that a rehearsal leaves no trace."
import math
import random
import re
import signal

import numpy as np
import pytest
import torch
from torch import nn
from training_helpers import Do, assert_same, lm_data, lm_learner, plain_learner, snapshot, two_classes

from awdtext.training.callback import Callback, CancelStepException
from awdtext.training.optim import SGD, Adam
from awdtext.training.precision import MixedPrecision
from awdtext.training.rnn import ASGD
from awdtext.training.schedule import minimum, valley


class Rates(Callback):
    "Keeps the rates, momenta and flags of every step."
    def __init__(self): self.seen = []
    def before_step(self, learn):
        groups = learn.opt.param_groups
        self.seen.append(([g['lr'] for g in groups], [g['betas'][0] for g in groups],
                          [any(p.requires_grad for p in g['params']) for g in groups]))


def deep(opt_func=Adam, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    groups = dict(splitter=lambda m: [list(l.parameters()) for l in m])
    return plain_learner(two_classes(), opt_func=opt_func, model=model, **groups, **kwargs)


# fine_tune and fit_flat_cos

def cosine(t, a, b): return a + (b - a) * (1 - math.cos(math.pi * t)) / 2


def cycle(t, top, div, div_final, pct):
    return cosine(t / pct, top / div, top) if t <= pct else cosine((t - pct) / (1 - pct), top, top / div_final)


def test_fine_tune_trains_the_last_group_then_all_at_fastais_rates():
    learn,rates = deep(),Rates()
    learn.fine_tune(2, 1e-2, freeze_epochs=1, lr_mult=100, pct_start=.3, div=5., cbs=rates)
    n = len(learn.dls.train)
    assert len(rates.seen) == 3 * n and len(learn.record) == 3
    for i, (lrs, _, learns) in enumerate(rates.seen[:n]):
        assert learns == [False, False, True]
        assert lrs[-1] == pytest.approx(cycle(i / n, 1e-2, 25., 1e5, .99))
    for i, (lrs, _, learns) in enumerate(rates.seen[n:]):
        assert learns == [True] * 3
        tops = [5e-3 / 100, 5e-3 / 10, 5e-3]
        assert lrs == pytest.approx([cycle(i / (2 * n), top, 5., 1e5, .3) for top in tops])


def test_fine_tune_hands_on_what_one_cycle_takes():
    learn,rates,moms = deep(),Rates(),(.5, .3, .6)
    learn.fine_tune(2, 1e-2, div_final=10., moms=moms, cbs=rates)
    n = len(learn.dls.train)
    for i, (lrs, (*_, mom), _) in enumerate(rates.seen):
        t,top,div,pct = (i / n, 1e-2, 25., .99) if i < n else ((i - n) / (2 * n), 5e-3, 5., .3)
        assert lrs[-1] == pytest.approx(cycle(t, top, div, 10., pct))
        a,b,x = (.5, .3, t / pct) if t <= pct else (.3, .6, (t - pct) / (1 - pct))
        assert mom == pytest.approx(cosine(x, a, b))


@pytest.mark.parametrize('how', ['fit', 'fit_one_cycle', 'fit_flat_cos', 'fine_tune'])
def test_an_optimiser_can_be_made_to_forget(how):
    "Adam counts its steps from the first fit on, or anew."
    def steps(**options):
        learn = deep()
        learn.fit(2, 1e-3)
        getattr(learn, how)(1, 1e-3, **options)
        return int(learn.opt.state[learn.opt.param_groups[-1]['params'][0]]['step']) / len(learn.dls.train)
    assert (steps(), steps(reset_opt=True)) == ((4, 1) if how == 'fine_tune' else (3, 1))


wrong_for_all = [dict(n_epoch=0), dict(start_epoch=-1), dict(start_epoch='1'), dict(every='often'), dict(wd=-1.)]
fits = ('fit', 'fit_one_cycle', 'fit_flat_cos')
wrong_calls = [(how, {'n_epoch': 2, **wrong}) for how in fits for wrong in wrong_for_all]
wrong_calls += [('fit', dict(n_epoch=2, lr=-1.)), ('fit_one_cycle', dict(n_epoch=2, lr_max=slice(0.))),
                ('fit_one_cycle', dict(n_epoch=2, pct_start=2.)), ('fit_one_cycle', dict(n_epoch=2, moms=(.9, .8))),
                ('fit_flat_cos', dict(n_epoch=2, pct_start=-1.))]
wrong_calls += [('fine_tune', {'epochs': 2, **wrong}) for wrong in (
    dict(epochs=0), dict(freeze_epochs=-1), dict(base_lr=-1.), dict(lr_mult=-1.), dict(every='often'), dict(wd=-1.),
    dict(pct_start=2.), dict(moms=(.9, .8)))]
nan = float('nan')
wrong_numbers = {'fit': ['lr', 'wd'], 'fit_flat_cos': ['lr', 'wd', 'pct_start', 'div_final'],
                 'fit_one_cycle': ['lr_max', 'wd', 'pct_start', 'div', 'div_final', 'moms'],
                 'fine_tune': ['base_lr', 'wd', 'pct_start', 'div', 'div_final', 'moms', 'lr_mult']}
values = {'moms': [(.9, nan, .9), (.9, .8, 1.), (-.1, .8, .9)], 'pct_start': [-1., 1., 2., nan],
          **dict.fromkeys(['lr_mult', 'div', 'div_final'], [0, -1., nan]),
          **dict.fromkeys(['lr', 'lr_max', 'base_lr', 'wd'], [-1., nan, float('inf')])}
wrong_numbers = [(how, name, value) for how, names in wrong_numbers.items() for name in names for value in values[name]]
wrong_calls += [(how, {'epochs' if how == 'fine_tune' else 'n_epoch': 2, name: value})
                for how, name, value in wrong_numbers]


@pytest.mark.parametrize('how,kwargs', wrong_calls, ids=str)
def test_what_cannot_be_is_refused_before_anything_is_changed(how, kwargs, capsys):
    learn = deep()
    learn.fit(1, 1e-3)
    learn.freeze_to(1)
    before,opt,cbs = snapshot(learn.model),learn.opt,list(learn.cbs)
    hypers = [{k: v for k, v in group.items() if k != 'params'} for group in opt.param_groups]
    capsys.readouterr()
    with pytest.raises(ValueError): getattr(learn, how)(**kwargs, reset_opt=True)
    assert learn.opt is opt and learn.cbs == cbs and len(learn.record) == 1 and learn.epoch == 0
    assert [{k: v for k, v in group.items() if k != 'params'} for group in opt.param_groups] == hypers
    assert [p.requires_grad for p in learn.model.parameters()] == [False] * 2 + [True] * 4
    assert_same(snapshot(learn.model), before)
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('how,name,value', wrong_numbers, ids=str)
def test_a_number_that_cannot_be_is_named(how, name, value):
    named = 'is no (range of )?rate' if name in ('lr', 'lr_max', 'base_lr') else f'^{name}='
    with pytest.raises(ValueError, match=named): getattr(deep(), how)(2, **{name: value})


@pytest.mark.parametrize('kwargs', [
    dict(start_lr=1., end_lr=1.), dict(start_lr=nan), dict(start_lr=0), dict(end_lr=nan), dict(end_lr=float('inf')),
    dict(num_it=0), dict(num_it=1), dict(num_it=5.5)], ids=str)
def test_lr_find_refuses_what_makes_no_curve(kwargs):
    name,value = list(kwargs.items())[-1]
    learn = deep()
    with pytest.raises(ValueError, match=f'{name}={value}'): learn.lr_find(**kwargs, show_plot=False)
    assert learn.opt is None and not learn.record


def test_fine_tune_without_a_frozen_part_and_interrupted_in_it(capsys):
    learn,rates = deep(),Rates()
    learn.fine_tune(1, freeze_epochs=0, cbs=rates)
    assert all(all(learns) for *_, learns in rates.seen)
    learn = deep()
    learn.fine_tune(1, cbs=Do('after_step', lambda learn: learn.iter == 2 and signal.raise_signal(signal.SIGINT)))
    assert learn.interrupted and not learn.record, "the second part is not begun"
    with pytest.raises(ValueError, match='epochs=0'): deep().fine_tune(0)


def test_flat_cos_is_flat_and_then_a_cosine_and_keeps_start_epoch():
    learn,rates = deep(),Rates()
    learn.fit_flat_cos(4, 1e-2, pct_start=.5, cbs=rates)
    n = 4 * len(learn.dls.train)
    for i, (lrs, *_) in enumerate(rates.seen):
        want = 1e-2 if i / n <= .5 else cosine((i / n - .5) / .5, 1e-2, 1e-7)
        assert lrs[-1] == pytest.approx(want)
    late = Rates()
    deep().fit_flat_cos(4, 1e-2, pct_start=.5, start_epoch=3, cbs=late)
    assert [s[0] for s in late.seen] == [s[0] for s in rates.seen[-len(late.seen):]]


def test_a_step_that_is_left_out_leaves_its_gradients_and_counts_its_loss():
    grads = []
    class Wait(Callback):
        def after_backward(self, learn):
            grads.append(learn.model.weight.grad.clone())
            if learn.iter < learn.n_iter - 1: raise CancelStepException
    torch.manual_seed(0)
    data = two_classes(24, 10)
    learn = plain_learner(data, cbs=Wait())
    before = snapshot(learn.model)
    learn.fit(1, .1)
    model = nn.Linear(3, 2)
    model.load_state_dict(before)
    for x, y in data.train: nn.functional.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(grads[-1], model.weight.grad)
    assert len(learn.recorder.losses) == 3


# lr_find and profile leave no trace

def everything(learn):
    slots = learn.opt and learn.opt.state_dict()['state']
    generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]
    return {'weights': snapshot(learn.model), 'random': generators,
            'passes': [getattr(learn.dls.train, 'epoch', 0), getattr(learn.dls.valid, 'epoch', 0)],
            'loop': [learn.epoch, learn.n_epoch, learn.iter, learn.n_iter, learn.training, learn.state, learn.x,
                     learn.opt, learn.average, learn.interrupted, list(learn.cbs), learn.valid_figures,
                     learn.model.training],
            'record': list(learn.record), 'losses': list(learn.recorder.losses),
            'opt': slots and {k: {n: t.clone() for n, t in v.items()} for k, v in slots.items()},
            'grads': [p.grad for p in learn.model.parameters()]}


def assert_untouched(learn, before):
    after = everything(learn)
    assert_same(after.pop('weights'), before.pop('weights'))
    for a, b in zip(after.pop('random'), before.pop('random')):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b
    opts = [o.pop('opt') for o in (after, before)]
    assert str(opts[0]) == str(opts[1])
    assert after == before


def trained(opt_func, lr):
    learn = lm_learner(opt_func=opt_func, averaging=ASGD(start=2))
    learn.fit(1, lr)
    return learn


@pytest.mark.parametrize('opt_func, lr', [(SGD, 30.), (Adam, 1e-3)])
@pytest.mark.parametrize('before_any_fit', [True, False])
def test_lr_find_leaves_the_learner_as_it_was(opt_func, lr, before_any_fit):
    learn = lm_learner(opt_func=opt_func) if before_any_fit else trained(opt_func, lr)
    before = everything(learn)
    found = learn.lr_find(num_it=30, show_plot=False, suggest_funcs=(valley, minimum))
    assert_untouched(learn, before)
    assert found._fields == ('valley', 'minimum') and found.valley == found[0]


def test_a_suggestion_of_ones_own_is_called_as_fastai_calls_it():
    seen = []
    def mine(lrs, losses, num_it): return seen.append((len(lrs) == len(losses), num_it)) or 3e-3
    assert lm_learner().lr_find(num_it=30, show_plot=False, suggest_funcs=mine) == (3e-3,) and seen == [(True, 30)]


@pytest.mark.parametrize('error', [ZeroDivisionError, KeyboardInterrupt])
def test_whatever_happens_in_lr_find_the_learner_is_restored(error):
    class Fail(Callback):
        def after_step(self, learn):
            if learn.iter == 3: raise error
    learn = trained(SGD, 30.).add_cb(Fail())
    before = everything(learn)
    with pytest.raises(error): learn.lr_find(num_it=30, show_plot=False)
    assert_untouched(learn, before)


def test_training_after_lr_find_is_training_without_it():
    learns = [lm_learner() for _ in range(2)]
    for i in (0, 1):
        learns[i] = lm_learner()
        if i: learns[i].lr_find(num_it=30, show_plot=False)
        learns[i].fit(1)
    assert_same(*(snapshot(learn.model) for learn in learns))


@pytest.mark.parametrize('opt_func, around', [(SGD, (.3, 300.)), (Adam, (3e-4, .3))])
def test_the_suggestion_suits_the_optimiser(opt_func, around):
    "SGD with clipped gradients wants rates around 30, Adam around 1e-3 to 1e-2; and the range looks beyond both."
    learn = lm_learner(lm_data(4000, 200), opt_func=opt_func)
    rate = learn.lr_find(show_plot=False).valley
    assert around[0] < rate < around[1]
    figures = {}
    for factor in (1, 1e-3):
        learn = lm_learner(lm_data(4000, 200), opt_func=opt_func)
        learn.fit(2, rate * factor)
        figures[factor] = learn.record[-1]['valid_loss']
    assert figures[1] < figures[1e-3] - .05


def test_lr_find_on_an_empty_loader_says_so():
    learn = plain_learner(two_classes())
    learn.dls.train = []
    with pytest.raises(ValueError, match='no training data to try'): learn.lr_find()
    learn.dls.train = None
    with pytest.raises(ValueError, match='no training data to try'): learn.profile()


def test_profile_leaves_the_learner_as_it_was_and_its_shares_add_up():
    learn = trained(SGD, 30.)
    before = everything(learn)
    table = learn.profile(3)
    assert_untouched(learn, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
    lines = table.splitlines()[1:-2]
    rows = [line.rsplit(maxsplit=2) for line in lines if line[0] != ' ']
    assert sum(float(ms) for _, ms, _ in rows[:-1]) == pytest.approx(float(rows[-1][1]), abs=.5)
    with pytest.raises(ValueError, match='n_batches=0'): learn.profile(0)


def test_profile_tells_the_layers_in_the_order_in_which_they_work():
    lines = lm_learner().profile(2).splitlines()
    names = [line.rsplit(maxsplit=2)[0].strip() for line in lines[1:-2]]
    layers = ['encoder.embedding', 'encoder.rnns.0', 'encoder.rnns.1']
    assert names == ['data', 'forward pass', *layers, 'loss', 'penalties and backward pass', *reversed(layers),
                     'clipping and step', 'the rest', 'a step']
    assert re.fullmatch(r'[\d,]+ tokens a second', lines[-1])


def test_summary_counts_tied_weights_once():
    learn = lm_learner()
    n,groups = sum(p.numel() for p in learn.model.parameters()),len(learn.splitter(learn.model))
    assert f'{n:,} parameters, {n:,} of them learn, in {groups} groups' in learn.summary()
    assert 'frozen' in learn.freeze().summary()


# Precision

def test_sixteen_bits_need_hardware_and_a_line_says_so(capsys):
    learn = lm_learner()
    if learn.device.type != 'cpu': pytest.skip("has the hardware")
    assert learn.to_fp16() is learn and learn.precision.name == 'fp32'
    assert 'stays in float32' in capsys.readouterr().out
    assert learn.to_fp32() is learn and not capsys.readouterr().out
    with pytest.raises(ValueError, match="precision='fp8'"): learn.compute_in('fp8')


def test_training_in_bfloat16_reaches_about_the_loss_of_float32():
    "On a model of linear layers: torch's LSTM in bfloat16 needs the hardware."
    losses = []
    for name in ('fp32', 'bf16'):
        learn = deep(lr=1e-2)
        learn.precision = MixedPrecision(name)
        learn.fit(3)
        assert all(p.dtype == torch.float32 for p in learn.model.parameters())
        assert learn.get_preds()[0].dtype == torch.float32
        losses.append(learn.record[-1]['valid_loss'])
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < .05


def test_the_scaled_loss_of_float16_changes_neither_figures_nor_clipping():
    "With a scaler and computing in float32, the steps are those without a scaler."
    learns = []
    for scaled in (False, True):
        learn = lm_learner(lm_data(400, 100), opt_func=SGD)
        if scaled: learn.precision.scaler = torch.amp.GradScaler('cpu', init_scale=1024.)
        learn.fit(1, 5.)
        learns.append(learn)
    a,b = (snapshot(learn.model) for learn in learns)
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-4, atol=1e-5)
    assert learns[0].record[0]['train_loss'] == pytest.approx(learns[1].record[0]['train_loss'], abs=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize('name', ['fp16', 'bf16'])
def test_sixteen_bits_on_a_gpu(name, tmp_path):
    learn = lm_learner(lm_data(1500, 300), opt_func=Adam).compute_in(name)
    assert learn.precision.name == name
    learn.fit(1, 1e-2, checkpoint=tmp_path / 'run')
    assert math.isfinite(learn.record[-1]['valid_loss'])
