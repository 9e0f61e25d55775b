"The paper's two stages against an explicit loop, what they leave behind, and what is refused."
import copy
import signal
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from training_helpers import Do, assert_same, lm_data, lm_learner, plain_learner, snapshot, tiny_size, two_classes

from awdtext.text_learner import language_model_learner
from awdtext.training.callback import Callback
from awdtext.training.monitors import EarlyStopping, KeepBest, NonmonotoneStopping
from awdtext.training.optim import SGD, Adam
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import GradientClip, RNNRegularizer, nonmonotone
from awdtext.training.schedule import ParamScheduler


def bare_learner(**kwargs):
    "Without dropout, clipping and penalties: a step is the rate times the gradient."
    torch.manual_seed(0)
    torch.set_num_threads(1)
    learn = language_model_learner(lm_data(), config=tiny_size, drop_mult=0., wd=0., **kwargs)
    return learn.remove_cb(ProgressCallback).remove_cb(GradientClip).remove_cb(RNNRegularizer)


# The oracle: the published main.py and finetune.py, as loops over lists of weights

def loss_of(model, batch, state):
    out = model(batch[0], state)
    return model.loss(out.dropped, batch[1]), tuple((h.detach(), c.detach()) for h, c in out.state)


def validate(model, weights, dl):
    kept = snapshot(model)
    model.load_state_dict(weights)
    nats,n,state = 0.,0,None
    with torch.no_grad():
        for batch in dl:
            loss,state = loss_of(model, batch, state)
            nats,n = nats + float(loss) * int((batch[1] >= 0).sum()),n + int((batch[1] >= 0).sum())
    model.load_state_dict(kept)
    return nats / n


def sgd_epoch(model, dl, lr, bptt):
    "The weights after each step of an epoch."
    seen,state = [],None
    for batch in dl:
        loss,state = loss_of(model, batch, state)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads): p -= lr * batch[0].shape[1] / bptt * g
        seen.append(snapshot(model))
    return seen


def mean_of(weights): return {k: torch.stack([w[k] for w in weights]).mean(0) for k in weights[0]}


def two_stages(model, dls, n_epoch, most, lr, n):
    "The best weights, both stages' validation losses, the step of the trigger and that of the second stage."
    logs,iterates,trigger,best,n_steps = [],[],None,(float('inf'), None),0
    for _ in range(n_epoch):
        seen = sgd_epoch(model, dls.train, lr, dls.seq_len)
        n_steps += len(seen)
        iterates += seen if trigger is not None else []
        shown = seen[-1] if trigger is None else mean_of(iterates)
        v = validate(model, shown, dls.valid)
        best = min(best, (v, shown), key=lambda pair: pair[0])
        if trigger is None and len(logs) > n and v > min(logs[:len(logs) - n]): trigger,iterates = n_steps,[seen[-1]]
        logs.append(v)
    first,logs,iterates = logs,[],[]
    model.load_state_dict(best[1])
    for _ in range(most):
        iterates += sgd_epoch(model, dls.train, lr, dls.seq_len)
        shown = mean_of(iterates)
        v = validate(model, shown, dls.valid)
        best = min(best, (v, shown), key=lambda pair: pair[0])
        stop = len(logs) > n and v > min(logs[:len(logs) - n])
        logs.append(v)
        if stop: break
    return best, first, logs, trigger, n_steps


@pytest.mark.parametrize('n_epoch,most,lr,n,triggers,stops', [
    (7, 12, 6., 0, True, True), (7, 3, 20., 1, True, False), (3, 3, 2., 3, False, False), (5, 0, 6., 0, True, False)])
def test_both_stages_are_those_of_the_explicit_loop(n_epoch, most, lr, n, triggers, stops):
    torch.set_default_dtype(torch.float64)  # a rate that makes the loss jump amplifies every rounding
    learn = bare_learner()
    model,dls = copy.deepcopy(learn.model),copy.deepcopy(learn.dls)
    (value,weights),first,second,trigger,n_steps = two_stages(model, dls, n_epoch, most, lr, n)
    assert (trigger is not None, len(second) < most) == (triggers, stops), "the examples show every case"

    learn.fit_ntasgd(n_epoch, most, lr, n)
    assert [r['valid_loss'] for r in learn.record] == pytest.approx(first + second, rel=1e-6)
    assert [r['stage'] for r in learn.record] == [1] * len(first) + [2] * len(second)
    assert [r['epoch'] for r in learn.record] == list(range(len(first + second)))
    assert_close(snapshot(learn.model), weights, rtol=1e-6, atol=1e-8)
    assert learn.validate()[0] == pytest.approx(value, rel=1e-6)
    rec = learn.recorder
    assert (rec.averaging_from, rec.stages) == (trigger, [0, n_steps] if most else [0])
    labels = [t.get_text() for t in rec.plot_loss().get_legend().get_texts()]
    assert labels[2:] == ['averaging begins'] * (trigger is not None) + ['stage 2 begins'] * (most > 0)


def test_the_stop_is_the_triggers_criterion():
    for n in (0, 1, 5):
        values = torch.rand(30).tolist()
        learn = plain_learner(two_classes())
        cb,stopped = NonmonotoneStopping(n),None
        learn.opt = None
        cb.before_fit(learn)
        for t, v in enumerate(values):
            learn.record.append({'valid_loss': v})
            try: cb.after_epoch(learn)
            except Exception as e:
                stopped = t
                assert type(e).__name__ == 'CancelFitException'
                break
        assert stopped == next(t for t in range(30) if nonmonotone(values[:t], values[t], n))


# What they leave behind

def test_the_optimiser_is_sgd_for_the_time_being():
    kinds = set()
    look = Do('before_step', lambda learn: kinds.add((type(learn.opt), learn.opt.param_groups[0]['momentum'])))
    for opt_func, momentum in ((Adam, 0.), (SGD, 0.), (partial(torch.optim.SGD, momentum=.5), .5)):
        learn = bare_learner(opt_func=opt_func)
        kinds.clear()
        learn.fit_ntasgd(1, 1, 1., cbs=look)
        assert kinds == {(torch.optim.SGD, momentum)}
        assert learn.opt_func is opt_func
        learn.fit_one_cycle(1, 1e-3)
        assert isinstance(learn.opt, torch.optim.SGD) == (opt_func is not Adam)
        assert 'stage' not in learn.record[-1] and learn.record[-2]['stage'] == 2


def test_it_starts_from_what_the_user_saw_last_with_a_history_of_its_own():
    learn = bare_learner(opt_func=SGD)
    learn.fit(8, 6.)
    learn.fit_ntasgd(3, 1, 6., n=0)
    learn.fit_ntasgd(3, 1, 6., n=0)                      # again: its plot and its history begin anew
    assert len(learn.recorder.stages) == 2
    first = []
    shown = snapshot(learn.model)
    learn.fit_ntasgd(1, 0, 6., cbs=Do('before_batch', lambda learn: first.append(snapshot(learn.model))))
    assert_same(first[0], shown)
    assert learn.recorder.averaging_from is None and learn.average is None


def test_what_remains_can_be_saved_loaded_and_trained_on(tmp_path):
    learn = bare_learner(path=tmp_path)
    learn.fit_ntasgd(3, 3, 6., n=0)
    other = bare_learner(path=tmp_path).load(learn.save('both'))
    assert_same(snapshot(other.model), snapshot(learn.model))
    assert other.record == learn.record
    assert other.recorder.averaging_from == learn.recorder.averaging_from
    assert other.recorder.stages == learn.recorder.stages
    other.fit_one_cycle(1, 1e-3)


def test_without_a_trigger_it_says_so_and_goes_on(capsys):
    learn = bare_learner()
    learn.fit_ntasgd(2, 1, 1.)
    assert 'Averaging never began: in 2 epochs' in capsys.readouterr().out
    assert [r['stage'] for r in learn.record] == [1, 1, 2]


class CtrlC(Callback):
    decides = False
    def __init__(self, epoch): self.epoch = epoch
    def after_pred(self, learn):
        if learn.training and learn.epoch == self.epoch and learn.iter == 2: signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize('epoch', [0, 2, 6])
def test_ctrl_c_leaves_the_best_so_far_and_the_same_call_goes_on(epoch, tmp_path):
    uncut = bare_learner()
    uncut.fit_ntasgd(5, 3, 6., n=0)
    learn = bare_learner()
    learn.fit_ntasgd(5, 3, 6., n=0, cbs=CtrlC(epoch), checkpoint=tmp_path / 'run', every='1000steps')
    assert learn.interrupted and len(learn.record) == epoch and learn.recorder.stage == 0
    if epoch: assert learn.validate()[0] == pytest.approx(min(r['valid_loss'] for r in learn.record), rel=1e-6)
    learn.fit_ntasgd(5, 3, 6., n=0, checkpoint=tmp_path / 'run', every='1000steps')
    assert_same(snapshot(learn.model), snapshot(uncut.model))
    assert [r['valid_loss'] for r in learn.record] == [r['valid_loss'] for r in uncut.record]
    assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == ['finetune', 'ntasgd']


def test_a_users_callback_may_end_a_stage():
    learn = bare_learner()
    learn.fit_ntasgd(9, 2, 1e-9, n=0, cbs=EarlyStopping(min_delta=1.))
    assert [r['stage'] for r in learn.record] == [1, 1, 2, 2] and [r['epoch'] for r in learn.record] == [0, 1, 9, 10]


def test_keep_best_is_left_alone_where_nothing_was_a_number():
    learn = plain_learner(two_classes(), metrics=lambda preds, targs: torch.tensor(float('nan')))
    best = KeepBest(monitor=learn.metrics[0].name, comp=lambda a, b: a < b)
    learn.fit(2, cbs=best)
    shown,opt = snapshot(learn.model),learn.opt
    best.restore(learn)
    assert best.weights is None and learn.opt is opt
    assert_same(snapshot(learn.model), shown)


# What cannot be

@pytest.mark.parametrize('kwargs,message', [
    (dict(n_epoch=0), 'n_epoch=0'), (dict(n_epoch=2, finetune_epochs=-1), 'finetune_epochs=-1'),
    (dict(n_epoch=2, lr=None), "lr=None: give a rate; the paper's is 30"), (dict(n_epoch=2, n=-1), 'n=-1'),
    (dict(n_epoch=2, cbs=ParamScheduler({'lr': (1., abs)})), 'constant rate'),
    (dict(n_epoch=2, every='often'), 'often'), (dict(n_epoch=2, lr=-1.), '-1.0 is no rate'),
    (dict(n_epoch=2, finetune_lr=-1.), '-1.0 is no rate'), (dict(n_epoch=2, lr=float('nan')), 'nan is no rate'),
    (dict(n_epoch=2, finetune_lr=float('nan')), 'nan is no rate'), (dict(n_epoch=2, wd=float('nan')), 'wd=nan'),
    (dict(n_epoch=2, n=2.5), 'n=2.5 must be at least 0, and a whole number')])
def test_refusals_leave_everything_as_it_was(kwargs, message):
    learn = bare_learner(opt_func=SGD)
    learn.fit(8, 6.)
    before,opt = snapshot(learn.model),learn.opt
    marks = learn.recorder.averaging_from,list(learn.recorder.stages)
    with pytest.raises(ValueError, match=message): learn.fit_ntasgd(**kwargs)
    assert_same(snapshot(learn.model), before)
    assert learn.recorder.stage == 0 and len(learn.record) == 8
    assert learn.opt is opt and (learn.recorder.averaging_from, learn.recorder.stages) == marks


def test_without_validation_data_nothing_could_decide():
    learn = bare_learner()
    learn.dls.valid = None
    with pytest.raises(ValueError, match='no validation data'): learn.fit_ntasgd(2)


def test_another_call_in_the_same_folder_is_refused(tmp_path):
    bare_learner().fit_ntasgd(2, 1, 2., checkpoint=tmp_path / 'run')
    for how in (dict(n_epoch=3), dict(n_epoch=2, n=3), dict(n_epoch=2, finetune_epochs=2), dict(n_epoch=2, lr=3.)):
        with pytest.raises(ValueError, match='holds another run'):
            bare_learner().fit_ntasgd(**{'finetune_epochs': 1, 'lr': 2., 'checkpoint': tmp_path / 'run', **how})


@pytest.mark.parametrize('how', [dict(partial_shuffle=True), dict(reset_at_docs=True), dict(shuffle=False)], ids=str)
def test_data_that_are_read_otherwise_are_another_run(how, tmp_path):
    lm_learner(lm_data(120, 60)).fit(1, checkpoint=tmp_path / 'run')
    other = lm_learner(lm_data(120, 60).read_lm(**how))
    with pytest.raises(ValueError, match='holds another run: data.train'): other.fit(1, checkpoint=tmp_path / 'run')


def test_lm_learner_of_the_helpers_ends_with_its_clipping_and_dropout_too():
    learn = lm_learner()
    learn.fit_ntasgd(3, 3, 6., n=0)
    assert learn.average is None and not learn.model.training
