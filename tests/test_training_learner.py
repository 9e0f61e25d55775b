"The loop: the order of its events, how it is left early, what it leaves behind, and what is learned at which rate."
import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from training_helpers import Do, Iterates, assert_same, lm_learner, plain_learner, snapshot, two_classes

from awdtext.data.batches import ClassifierDataLoader
from awdtext.data.corpus import make_corpus
from awdtext.models.classifier import get_text_classifier
from awdtext.training.callback import Callback, CancelBatchException, CancelEpochException, CancelFitException
from awdtext.training.learner import Learner
from awdtext.training.losses import mse_loss
from awdtext.training.metrics import accuracy
from awdtext.training.optim import SGD, Adam, group_values, make_opt, set_hyper
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import NTASGD
from awdtext.training.schedule import ParamScheduler, one_cycle
from awdtext.training.tracking import Recorder, TerminateOnNaN, TimeLeft

events = [name for name in vars(Callback) if name.startswith(('before_', 'after_'))]


class Events(Callback):
    "Writes down every event."
    def __init__(self, log=None, label='', order=0):
        self.log,self.order = [] if log is None else log,order
        for name in events: setattr(self, name, lambda learn, name=name: self.log.append(f'{label}{name}'))


def layers(): return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
def by_layer(model): return [list(model[0].parameters()), list(model[2].parameters())]


# Events

def test_events_come_in_the_documented_order():
    dls = two_classes(n_train=16, n_valid=7)      # two batches and one
    cb = Events()
    plain_learner(dls, cbs=cb).fit(1)
    batch = ['before_batch', 'after_pred', 'after_loss']
    update = ['after_backward', 'before_step', 'after_step']
    assert cb.log == ['before_fit', 'before_epoch',
                      'before_train', *(batch + update + ['after_batch']) * 2, 'after_train',
                      'before_validate', *batch, 'after_batch', 'after_validate', 'after_epoch', 'after_fit']


def test_callbacks_run_by_order_and_equals_as_they_were_added():
    log = []
    cbs = [Events(log, label=f'{label} ', order=order) for label, order in (('d', 5), ('a', -3), ('b', 1), ('c', 1))]
    plain_learner(two_classes(n_train=8), cbs=cbs).fit(1)
    labels = [line.split()[0] for line in log]
    assert labels == list('abcd') * (len(labels) // 4)


def test_the_projects_own_orders():
    learn = lm_learner(averaging=NTASGD())
    order = {type(cb).__name__: cb.order for cb in [*learn.cbs, ProgressCallback(), ParamScheduler({})]}
    pairs = [('Recorder', 'ProgressCallback'), ('ProgressCallback', 'NTASGD'), ('RNNRegularizer', 'LossGuard'),
             ('ParamScheduler', 'ScaleLRBySeqLen')]
    for first, then in pairs: assert order[first] < order[then]


def test_callbacks_are_added_for_good_or_for_one_fit():
    learn = plain_learner(two_classes())
    n,cb = len(learn.cbs),Events()
    assert learn.add_cb(Events) is learn and len(learn.cbs) == n + 1
    learn.fit(1, cbs=cb)
    assert cb.log and cb not in learn.cbs and len(learn.cbs) == n + 1
    with pytest.raises(RuntimeError): learn.fit(1, cbs=[cb, Do('before_fit', raiser(RuntimeError))])
    assert len(learn.cbs) == n + 1
    assert learn.remove_cb(Events) is learn and len(learn.cbs) == n


def raiser(exc):
    def raise_it(learn): raise exc
    return raise_it


# Leaving early

def test_cancelled_batch_takes_no_step_and_is_not_counted():
    def skip(learn):
        if learn.training and learn.iter in (1, 2): raise CancelBatchException
    learn,seen = plain_learner(two_classes()),Iterates()
    learn.fit(1, cbs=[seen, Do('before_batch', skip)])
    assert len(seen.seen) == len(learn.dls.train) - 2 == len(learn.recorder.losses)

    again = plain_learner(learn.dls)                # the oracle: without these batches
    again.dls = SimpleNamespace(train=learn.dls.train[:1] + learn.dls.train[3:], valid=learn.dls.valid)
    again.fit(1)
    assert_same(snapshot(again.model), snapshot(learn.model))
    assert again.record[0]['train_loss'] == learn.record[0]['train_loss']


def test_cancelled_epoch_has_no_line_and_the_next_one_has():
    def skip(learn):
        if learn.epoch == 1 and learn.iter == 2: raise CancelEpochException
    learn = plain_learner(two_classes())
    learn.fit(3, cbs=Do('before_batch', skip))
    assert [r['epoch'] for r in learn.record] == [0, 2]
    assert len(learn.recorder.losses) == len(learn.recorder.lrs) == 2 * 8 + 2


@pytest.mark.parametrize('event', events[:-1])
def test_fit_can_be_ended_at_every_event(event):
    learn,seen = plain_learner(two_classes()),Events()
    learn.fit(5, cbs=[seen, Do(event, raiser(CancelFitException))])
    assert seen.log[-1] == 'after_fit' and seen.log.count('after_fit') == 1
    assert not learn.interrupted and not learn.model.training
    learn.fit(1)
    assert learn.record[-1]['epoch'] == 0


@pytest.mark.parametrize('event', events)
def test_an_error_at_every_event_leaves_a_learner_that_works(event):
    learn = plain_learner(two_classes(), lr=3., cbs=NTASGD(start=2))
    learn.fit(1)
    shown,n = snapshot(learn.model),len(learn.cbs)
    seen = Events(order=NTASGD.order + 1)
    fails = Do(event, raiser(ZeroDivisionError), order=-50)
    with pytest.raises(ZeroDivisionError): learn.fit(2, cbs=[fails, seen])
    assert seen.log[-1] == 'after_fit' and len(learn.cbs) == n and not learn.model.training
    assert learn.average.swapped, "the model holds what validation saw"
    no_step_yet = event in ('before_fit', 'before_epoch', 'before_train', 'before_batch')
    if no_step_yet: assert_same(snapshot(learn.model), shown)
    learn.fit(1)
    expected = plain_learner(learn.dls, model=copy.deepcopy(learn.model)).validate()[0]
    assert learn.record[-1]['valid_loss'] == pytest.approx(expected)


def test_gradients_of_a_step_that_was_cut_short_do_not_leak_into_the_next_fit():
    learn = plain_learner(two_classes())
    with pytest.raises(ZeroDivisionError): learn.fit(1, cbs=Do('after_backward', raiser(ZeroDivisionError)))
    assert learn.model.weight.grad is not None
    oracle = plain_learner(learn.dls)
    for l in (learn, oracle): l.fit(1)
    assert_same(snapshot(learn.model), snapshot(oracle.model))


# What is left behind

def test_no_graph_is_kept_between_batches_and_after_a_fit():
    learn = lm_learner()
    names = 'x y out preds loss total_loss'.split()
    kept = []
    look = Do('before_batch', lambda learn: kept.extend(n for n in names[2:] if getattr(learn, n) is not None))
    learn.fit(1, cbs=look)
    assert not kept
    assert [getattr(learn, n) for n in [*names, 'state']] == [None] * 7
    assert all(p.grad is None for p in learn.model.parameters())
    learn.validate()
    assert [getattr(learn, n) for n in names] == [None] * 6


def test_model_is_left_in_evaluation_after_a_fit_and_as_it_was_after_validation():
    learn = lm_learner()
    assert learn.model.training
    learn.validate()
    assert learn.model.training
    learn.model.eval()
    learn.get_preds()
    assert not learn.model.training
    learn.fit(1)
    assert not learn.model.training


def test_nothing_of_a_fit_is_left_for_the_next():
    learn = plain_learner(two_classes(), opt_func=Adam, moms=(.8, .7, .6))
    def hypers(): return [{k: v for k, v in g.items() if k not in ('params', 'lr')} for g in learn.opt.param_groups]
    learn.fit(1)
    before,state = hypers(),learn.opt.state
    learn.fit(1, .5, wd=.3)
    assert hypers()[0]['weight_decay'] == .3
    learn.fit_one_cycle(1)
    learn.fit(1)
    assert hypers() == before and learn.opt.state is state and len(state) == 2
    assert learn.opt.param_groups[0]['lr'] == .1


def test_a_layer_that_was_replaced_learns():
    learn = plain_learner(two_classes(), opt_func=Adam, model=layers())
    learn.fit(1)
    learn.model[2] = nn.Linear(4, 2)
    before = learn.model[2].weight.detach().clone()
    learn.fit(1)
    assert not torch.equal(learn.model[2].weight.data, before)


def test_gradients_are_accumulated_over_batches_that_are_left_before_the_step():
    def skip(learn):
        if learn.iter % 2 == 0: raise CancelBatchException
    learn,oracle = plain_learner(two_classes()),plain_learner(two_classes())
    learn.dls.train = learn.dls.train[:2]
    learn.fit(1, cbs=Do('before_step', skip))
    opt = SGD(oracle.model.parameters(), lr=.1)
    for x, y in learn.dls.train: F.cross_entropy(oracle.model(x), y).backward()
    opt.step()
    assert_close(snapshot(learn.model), snapshot(oracle.model))


def test_a_learner_can_be_copied_and_pickled():
    learn = plain_learner(two_classes(), metrics=accuracy, cbs=NTASGD(n=1), loss_func=None)
    learn.fit(2)
    for again in (copy.deepcopy(learn), pickle.loads(pickle.dumps(learn))):
        assert again.validate() == learn.validate()
        again.fit(1)
        assert len(again.record) == 3 and len(learn.record) == 2


def test_validate_and_get_preds_before_any_fit():
    learn = plain_learner(two_classes(), metrics=accuracy)
    x,y = (torch.cat(o) for o in zip(*learn.dls.valid))
    assert learn.validate()[0] == pytest.approx(F.cross_entropy(learn.model(x), y).item())
    probs,targets,losses = learn.get_preds(with_loss=True)
    assert_close(probs, learn.model(x).softmax(1))
    assert_close(losses, F.cross_entropy(learn.model(x), y, reduction='none'))
    assert torch.equal(targets, y) and not probs.requires_grad


def test_parts_that_are_not_there():
    learn = plain_learner(two_classes())
    for i in (2, 3, -1):
        with pytest.raises(ValueError, match=f"no data number {i}"): learn.validate(i)
    with pytest.raises(ValueError, match="no labels"): learn.validate(dl=[(torch.randn(2, 3), None)])
    probs,targets = learn.get_preds(dl=[(torch.randn(2, 3), None)])
    assert probs.shape == (2, 2) and targets is None


@pytest.mark.parametrize('n_epoch', [0, -1, 1.5, True, None, '3'])
def test_wrong_number_of_epochs(n_epoch):
    with pytest.raises(ValueError, match="n_epoch="): plain_learner(two_classes()).fit(n_epoch)


def test_start_epoch_leaves_epochs_out():
    learn = plain_learner(two_classes())
    learn.fit_one_cycle(4, 1., start_epoch=2)
    assert [r['epoch'] for r in learn.record] == [2, 3]
    assert learn.recorder.lrs[0] == pytest.approx(one_cycle()(.5))


def test_number_of_batches_is_that_of_the_coming_pass():
    learn,counts = lm_learner(),[]
    count = Do('after_train', lambda learn: counts.append((learn.n_iter, learn.iter + 1)))
    learn.fit(6, cbs=count)
    assert all(a == b for a, b in counts) and len(set(counts)) > 1


def test_state_starts_cold_in_each_pass_and_is_carried_within():
    learn,states = lm_learner(),[]
    learn.fit(2, cbs=Do('before_batch', lambda learn: states.append((learn.training, learn.iter, learn.state))))
    for _, i, state in states:
        assert (state is None) == (i == 0)
        if state: assert not any(t.requires_grad for layer in state for t in layer)
    assert {training for training, *_ in states} == {True, False}


# Rates

def test_every_group_learns_at_its_own_rate():
    dls = two_classes()
    learn,steps = plain_learner(dls, model=layers(), splitter=by_layer, wd=0.),[]

    def before(learn): steps.append([(p.detach().clone(), p.grad.clone()) for g in by_layer(learn.model) for p in g])
    def after(learn):
        now = [p for g in by_layer(learn.model) for p in g]
        for (p, grad), q, lr in zip(steps[-1], now, (.01, .01, 1., 1.)): assert_close(q.data, p - lr * grad)
    learn.fit(1, slice(.01, 1.), cbs=[Do('before_step', before), Do('after_step', after)])
    assert steps


@pytest.mark.parametrize('value,n,expected', [
    (.1, 3, [.1, .1, .1]), (slice(1e-4, 1e-2), 3, [1e-4, 1e-3, 1e-2]), (slice(1e-2), 3, [1e-3, 1e-3, 1e-2]),
    (slice(1e-2), 1, [1e-2]), (slice(1e-4, 1e-2), 1, [1e-2]), ([1, 2], 2, [1., 2.]), ((3,), 1, [3.])])
def test_values_of_groups(value, n, expected): assert group_values(value, n) == pytest.approx(expected)


@pytest.mark.parametrize('value', [slice(None), slice(0, 1), slice(1, 0), slice(-1, 1)])
def test_a_slice_that_is_no_range(value):
    with pytest.raises(ValueError, match="use slice"): group_values(value, 2)


def test_one_cycle_is_fastais_in_rates_and_momenta_for_each_group():
    learn = plain_learner(two_classes(), opt_func=Adam, model=layers(), splitter=by_layer, moms=(.8, .7, .6))
    seen = []
    look = Do('before_step', lambda learn: seen.append([(g['lr'], g['betas'][0]) for g in learn.opt.param_groups]))
    learn.fit_one_cycle(5, slice(.1, .4), div=10., div_final=100., pct_start=.4, cbs=look)
    n,anneal = len(seen),one_cycle(10., 100., .4)
    for i, groups in enumerate(seen):
        t = i / n
        up = torch.tensor(min(t / .4, 1.)).mul(torch.pi).cos().item()
        down = torch.tensor(max(t - .4, 0) / .6).mul(torch.pi).cos().item()
        mom = .8 + (.7 - .8) * (1 - up) / 2 if t <= .4 else .7 + (.6 - .7) * (1 - down) / 2
        assert [lr for lr, _ in groups] == pytest.approx([.1 * anneal(t), .4 * anneal(t)])
        assert [m for _, m in groups] == pytest.approx([mom, mom], abs=1e-6)
    plain_learner(two_classes(), opt_func=SGD, moms=(.0, .0, .0)).fit_one_cycle(1, .1)


def test_set_hyper_by_name():
    opt = make_opt(layers(), torch.optim.SGD, .1, splitter=by_layer)
    set_hyper(opt, 'wd', [.1, .2])
    assert [g['weight_decay'] for g in opt.param_groups] == [.1, .2]
    with pytest.raises(ValueError, match="'speed'"): set_hyper(opt, 'speed', 1.)


# Freezing

@pytest.mark.parametrize('n,frozen', [(0, 0), (1, 1), (-1, 1), (-2, 0)])
def test_freeze_to(n, frozen):
    learn = plain_learner(two_classes(), opt_func=Adam, model=layers(), splitter=by_layer)
    before = snapshot(learn.model)
    assert learn.freeze_to(n) is learn
    learn.fit(1, .1)
    for i, name in ((0, '0.weight'), (1, '2.weight')):
        assert torch.equal(snapshot(learn.model)[name], before[name]) == (i < frozen), name


@pytest.mark.parametrize('n', [2, -3])
def test_freeze_to_a_group_that_is_not_there(n):
    with pytest.raises(ValueError, match=rf"freeze_to\({n}\): this model has 2 groups"):
        plain_learner(two_classes(), model=layers(), splitter=by_layer).freeze_to(n)


@pytest.mark.parametrize('n', ['head', None, 1., True, [0]], ids=str)
def test_freeze_to_what_is_no_number_of_a_group(n):
    with pytest.raises(ValueError, match=r"freeze_to\(.*\): this model has 2 groups, .* the number of the first"):
        plain_learner(two_classes(), model=layers(), splitter=by_layer).freeze_to(n)


def test_freezing_keeps_the_optimisers_state_and_old_gradients_move_nothing():
    learn = plain_learner(two_classes(), opt_func=Adam, model=layers(), splitter=by_layer)
    learn.fit(1, .1)
    first = learn.model[0].weight
    state = {k: v.clone() for k, v in learn.opt.state[first].items()}
    learn.freeze()
    before = first.detach().clone()
    first.grad = torch.ones_like(first)             # left by somebody
    learn.fit(1, .1)
    assert torch.equal(first.data, before)
    for k, v in state.items(): assert torch.equal(learn.opt.state[first][k], v)
    learn.unfreeze().fit(1, .1)
    assert learn.opt.state[first]['step'] > state['step']


def test_a_language_model_can_be_unfrozen_group_by_group():
    learn = lm_learner()
    learn.freeze()
    before = snapshot(learn.model)
    learn.fit(1)
    changed = {k for k, v in snapshot(learn.model).items() if not torch.equal(v, before[k])}
    assert changed and not any('rnns' in k for k in changed) and 'decoder.bias' in changed


# Predictions

def documents(lengths): return [[f'w{(i * 7 + j) % 30}' for j in range(n)] for i, n in enumerate(lengths)]


def test_predictions_come_in_the_order_of_the_data_for_every_batch_size():
    lengths = torch.randint(1, 40, (23,)).tolist()
    corpus,vocab = make_corpus(documents(lengths), min_freq=1)
    y = torch.arange(23) % 3
    torch.set_num_threads(1)
    model = get_text_classifier(len(vocab), 3, config=dict(emb_sz=8, n_hid=12, n_layers=2), seq_len=10)
    learn = Learner(SimpleNamespace(train=None, valid=None, path='.', device='cpu'), model)
    learn.model.eval()
    with torch.no_grad():
        alone = torch.cat([model(corpus[i].long()[None], torch.tensor([n])).logits for i, n in enumerate(lengths)])
    for bs in (1, 4, 23, 64):
        for shuffle in (False, True):
            if shuffle and bs == 1: continue
            dl = ClassifierDataLoader(corpus, y, bs=bs, shuffle=shuffle, seed=3)
            for _ in range(2):                                          # a shuffling loader changes its order
                probs,targets,losses = learn.get_preds(dl=dl, with_loss=True)
                assert torch.equal(targets, y)
                assert_close(probs, alone.softmax(1), rtol=1e-5, atol=1e-6)
                assert_close(losses, F.cross_entropy(alone, y, reduction='none'), rtol=1e-4, atol=1e-5)


def test_regression_predicts_values():
    train,valid = ([(torch.randn(4, 3), torch.randn(4))] for _ in range(2))
    dls = SimpleNamespace(train=train, valid=valid, path='.', device='cpu')
    learn = plain_learner(dls, model=nn.Linear(3, 1), loss_func=mse_loss())
    learn.fit(1)
    values,y,losses = learn.get_preds(with_loss=True)
    assert_close(losses, (values[:, 0] - y)**2)
    assert learn.validate()[0] == pytest.approx(losses.mean().item())


# A loss that is no number

def test_nan_loss_stops_before_the_weights_are_spoilt():
    learn = plain_learner(two_classes(), lr=.1)
    learn.dls.train[3][0][0, 0] = float('nan')
    seen = Iterates()
    with pytest.raises(FloatingPointError, match=r"became nan in epoch 0, batch 3 \(learning rate 0.1\)") as e:
        learn.fit(2, cbs=seen)
    assert "weights are those before this batch" in str(e.value)
    assert len(seen.seen) == 3
    assert_same(snapshot(learn.model), seen.seen[-1])
    assert learn.x.isnan().any(), "the batch is there to be looked at"
    assert len(learn.recorder.losses) == 3
    learn.dls.train.pop(3)
    learn.fit(1)
    assert len(learn.record) == 1


def test_infinite_penalty_stops_too():
    learn = lm_learner(alpha=float('inf'))
    with pytest.raises(FloatingPointError, match="penalties became inf"): learn.fit(1)
    assert all(p.isfinite().all() for p in learn.model.parameters())


def test_spoilt_weights_are_told():
    learn = plain_learner(two_classes())
    nn.init.constant_(learn.model.weight, float('nan'))
    with pytest.raises(FloatingPointError, match="weights are no numbers either"): learn.fit(1)


def test_looks_at_every_kth_batch_only():
    learn = plain_learner(two_classes(), cbs=TerminateOnNaN(every=3))
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, TerminateOnNaN) or cb.every == 3]
    learn.dls.train[1][0][0, 0] = float('nan')
    with pytest.raises(FloatingPointError, match="batch 3 .*no numbers either"): learn.fit(1)


# The time left

@pytest.mark.parametrize('limit,lines', [(0., 1), (3600., 0)])
def test_time_left_is_one_line_over_the_limit_and_none_under_it(limit, lines, capsys):
    learn = plain_learner(two_classes(), cbs=TimeLeft(limit, lambda s: 'Advice.', n_batches=2, min_seconds=0.))
    learn.fit(3)
    out = capsys.readouterr().out
    assert out.count("This run will take about") == lines and out.count("Advice.") == lines
    learn.fit(1)
    assert capsys.readouterr().out.count("This run will take about") == lines


def test_time_left_is_estimated_from_the_batches_done(monkeypatch):
    now,left = [0.],[]
    monkeypatch.setattr('awdtext.training.tracking.time', SimpleNamespace(perf_counter=lambda: now[0]))
    tick = Do('before_batch', lambda learn: now.__setitem__(0, now[0] + (2. if learn.training else 0.)))
    cb = TimeLeft(1., lambda s: left.append(s) or '', n_batches=4, min_seconds=0.)
    learn = plain_learner(two_classes(), cbs=[tick, cb])
    learn.fit(5)                                                        # 5 epochs of 8 batches, 2 seconds each
    assert left == [pytest.approx(2. * (40 - 4), abs=2.)]


# The record

def test_record_has_a_line_per_epoch_and_curves_a_point_per_step():
    learn = plain_learner(two_classes(), metrics=accuracy)
    learn.fit(2)
    learn.fit(1)
    assert [r['epoch'] for r in learn.record] == [0, 1, 0]
    rec = learn.recorder
    assert len(rec.losses) == len(rec.lrs) == 3 * 8 and rec.valid_steps == [8, 16, 24]
    assert rec.valid_losses == [r['valid_loss'] for r in learn.record]
    again = Recorder()
    again.load_state_dict(rec.state_dict())
    assert (again.losses, again.lrs, again.valid_losses) == (rec.losses, rec.lrs, rec.valid_losses)


def test_curve_marks_where_averaging_began():
    learn = plain_learner(two_classes(), cbs=NTASGD(start=5))
    learn.fit(2)
    ax = learn.recorder.plot_loss(skip_start=0)
    marks = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert list(marks['averaging begins']) == [4, 4]      # the fifth of the steps counted from 0
    assert len(marks['train (smoothed)']) == 16 and list(marks['valid']) == [8, 16]


def test_fit_without_a_rate_says_which_one_it_takes(capsys):
    learn = plain_learner(two_classes(n_train=8))
    learn.fit(1)
    assert capsys.readouterr().out == 'SGD at a constant rate of 0.1; fit(n, lr=…) takes another.\n'
    learn.fit(1, .01)
    assert capsys.readouterr().out == ''


def test_a_rehearsal_begins_at_the_beginning():
    "Whatever was trained before: a schedule that the learner has would else be asked for more than its end."
    learn,seen = plain_learner(two_classes()), []
    learn.fit(3, .1)
    learn.add_cb(Do('before_batch', lambda learn: seen.append(learn.pct_train)))
    learn.cbs[-1].in_lr_find = True
    learn.lr_find(num_it=20)
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] < 1 and learn.epoch == 2
    assert 'slice(0.0001, 0.01, None)' in str(plain_learner(two_classes(), lr=slice(1e-4, 1e-2)).summary())
