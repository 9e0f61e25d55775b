"Stopping early, keeping the best weights, lowering the rate: in real fits, whose figures are made up where need be."
import math
import operator

import numpy as np
import pytest
from training_helpers import Do, assert_same, lm_learner, plain_learner, snapshot, two_classes

from awdtext.training import metrics
from awdtext.training.callback import Callback
from awdtext.training.metrics import Perplexity, accuracy
from awdtext.training.monitors import (EarlyStopping, EarlyStoppingCallback, Monitor, ReduceLROnPlateau, SaveModel,
                                       SaveModelCallback, falls)
from awdtext.training.optim import Adam
from awdtext.training.rnn import ASGD


def figures(values, name='valid_loss'):
    "A callback that writes `values` into the record instead of what was measured."
    def write(learn): learn.record[-1][name] = values[learn.epoch]
    return Do('after_epoch', write, order=-15)


def weights_of_epochs(order=15):
    "A list, and a callback that fills it with the weights after each epoch."
    seen = []
    return seen, Do('after_epoch', lambda learn: seen.append(snapshot(learn.model)), order=order)


# The direction

@pytest.mark.parametrize('name, down', [
    ('train_loss', True), ('valid_loss', True), ('perplexity', True), ('bits_per_char', True), ('error_rate', True),
    ('mse', True), ('accuracy', False), ('accuracy_multi', False), ('top_k_accuracy', False), ('f1_score', False),
    ('precision', False), ('recall_multi', False), ('roc_auc', False), ('matthews_corr_coef', False),
    ('r2_score', False), ('f_beta', False), ('balanced_accuracy', False)])
def test_the_direction_of_known_figures(name, down): assert falls(name) is down


def test_all_metrics_of_the_package_have_a_direction():
    classes = [o for o in vars(metrics).values() if isinstance(o, type) and issubclass(o, metrics.Metric)]
    made = [cls(beta=1.) if cls is metrics.FBeta else cls() for cls in classes
            if cls.__name__ in metrics.__all__ and cls not in (metrics.Metric, metrics.AvgMetric)]
    functions = [metrics.accuracy, metrics.error_rate, metrics.top_k_accuracy, metrics.accuracy_multi, metrics.mse,
                 metrics.mae, metrics.rmse]
    made += metrics.as_metrics(functions)
    assert len(made) > 15
    for metric in made: falls(metric.name)


def test_the_direction_can_be_given():
    assert falls('x', np.less) and falls('accuracy', operator.lt)
    assert not falls('valid_loss', np.greater)
    learn,cb = plain_learner(two_classes()),EarlyStopping('valid_loss', comp=np.greater)
    learn.fit(5, .1, cbs=[figures([1., 2., 3., 2., 9.]), cb])
    assert len(learn.record) == 4 and cb.best == 3.


def test_a_figure_without_a_direction_needs_one(capsys):
    def oddity(preds, targs): return preds.mean()
    learn = plain_learner(two_classes(), metrics=oddity)
    with pytest.raises(ValueError, match='give comp=np.less'): learn.fit(1, .1, cbs=EarlyStopping('oddity'))
    learn.fit(2, .1, cbs=EarlyStopping('oddity', comp=np.less, patience=9))
    assert len(learn.record) == 2


# What can be watched

@pytest.mark.parametrize('cls', [EarlyStopping, SaveModel, ReduceLROnPlateau])
def test_a_figure_that_is_not_there(cls):
    learn = plain_learner(two_classes(), metrics=[accuracy, Perplexity()])
    with pytest.raises(ValueError, match="there are .'train_loss', 'valid_loss', 'accuracy', 'perplexity'."):
        learn.fit(1, .1, cbs=cls('f1_score'))
    assert not learn.record


def test_without_validation_data_only_the_training_loss():
    dls = two_classes()
    dls.valid = None
    with pytest.raises(ValueError, match='no validation data'): plain_learner(dls).fit(1, cbs=EarlyStopping())
    learn = plain_learner(dls)
    learn.fit(3, .1, cbs=EarlyStopping('train_loss', patience=3))
    assert len(learn.record) == 3
    with pytest.raises(ValueError, match=r"there are \['train_loss'\]"): learn.fit(1, .1, cbs=EarlyStopping('accuracy'))


@pytest.mark.parametrize('make, message', [
    (lambda: Monitor(min_delta=-1), 'min_delta=-1'), (lambda: EarlyStopping(patience=0), 'patience=0'),
    (lambda: ReduceLROnPlateau(patience=-1), 'patience=-1'), (lambda: ReduceLROnPlateau(factor=1.), 'factor=1.0'),
    (lambda: SaveModel(every_epoch=2, at_end=True), 'contradict')])
def test_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message): make()


# Stopping

@pytest.mark.parametrize('values, patience, min_delta, n', [
    ([5, 4, 3, 2, 1], 1, 0., 5), ([5, 6, 1, 1, 1], 1, 0., 2), ([5, 6, 4, 6, 6, 3], 2, 0., 5), ([5, 5, 1], 1, 0., 2),
    ([5, 4.95, 4.9, 1], 2, .1, 3), ([5, 4.8, 4.6, 4.4], 1, .1, 4), ([math.nan, math.nan, 1], 2, 0., 2),
    ([math.nan, 3, math.nan, 2.5], 2, 0., 4), ([math.inf, 3., 2.], 2, 0., 3)])
def test_stopping_after_patience(values, patience, min_delta, n, capsys):
    learn,ends = plain_learner(two_classes()),[]
    cb = EarlyStopping(min_delta=min_delta, patience=patience)
    look = Do('after_epoch', lambda learn: ends.append(learn.epoch), order=45)
    learn.fit(len(values), .1, cbs=[figures(values), cb, look])
    assert len(learn.record) == len(ends) == n, "nobody misses the end of the last epoch"
    out = capsys.readouterr().out.splitlines()
    said = [f'Stopped after epoch {n - 1}: valid_loss']
    assert [line[:len(said[0])] for line in out] == (said if cb.wait == patience else [])


def test_a_new_fit_has_its_patience_back():
    learn,cb = plain_learner(two_classes()),EarlyStopping(patience=2)
    learn.add_cb(cb).add_cb(figures([1., 2., 3., 4.]))
    learn.fit(4, .1)
    learn.fit(4, .1)
    assert [row['epoch'] for row in learn.record] == [0, 1, 2] * 2
    cb.reset_on_fit = False
    learn.fit(4, .1)
    assert [row['epoch'] for row in learn.record][6:] == [0, 1], "1 is not better than the 1 of the last fit"


@pytest.mark.parametrize('cls', [EarlyStopping, SaveModel, ReduceLROnPlateau])
def test_state_goes_through_a_file(cls, tmp_path):
    learn,cb = plain_learner(two_classes(), path=tmp_path),cls(min_delta=.1)
    learn.fit(3, .1, cbs=[figures([3., 2., 2.]), cb])
    learn.add_cb(cb)
    learn.save('state')
    other = plain_learner(two_classes(), cbs=cls(), path=tmp_path).load('state').cbs[-1]
    assert other.state_dict() == cb.state_dict() and other.best == 2. and other.epoch == 1


def test_a_killed_run_keeps_its_patience(tmp_path):
    "Stopped by hand in epoch 4, after one epoch without improvement, and continued: it stops where the whole run does."
    dls = two_classes()
    def run(folder, kill):
        learn = plain_learner(dls, path=tmp_path)
        def stop(learn):
            if kill and learn.epoch == 4 and learn.training and learn.iter == 2: raise KeyboardInterrupt
        cbs = [figures([3., 2., 1., 4., 4., 4., 4.]), EarlyStopping(patience=2), Do('before_batch', stop)]
        learn.fit(7, .1, cbs=cbs, checkpoint=tmp_path / folder, every='1steps')
        return learn
    whole = run('whole', False)
    assert len(whole.record) == 5
    run('killed', True)
    again = run('killed', False)
    assert len(again.record) == 5
    assert_same(again.model.state_dict(), whole.model.state_dict())


# The best weights

@pytest.mark.parametrize('values, best', [([3., 1., 2., 2.], 1), ([3., 2., 1.], 2), ([1., math.nan, 2.], 0)])
@pytest.mark.parametrize('with_opt', [False, True])
def test_the_model_holds_the_best_weights(values, best, with_opt, tmp_path, capsys):
    learn,(seen, look) = plain_learner(two_classes(), opt_func=Adam, path=tmp_path),weights_of_epochs()
    learn.fit(len(values), .1, cbs=[figures(values), look, SaveModel(with_opt=with_opt)])
    assert_same(learn.model.state_dict(), seen[best])
    assert [row['epoch'] for row in learn.record] == list(range(len(values))), "the record tells of all epochs"
    assert len(learn.recorder.losses) == 8 * len(values)
    out = capsys.readouterr().out
    assert out == f"The model holds the weights of epoch {best} (valid_loss 1), saved as 'model'.\n"
    learn.fit(1, .1)                                                  # and training can go on
    assert len(learn.record) == len(values) + 1


def test_an_accuracy_is_best_when_it_is_highest(tmp_path):
    learn,(seen, look) = plain_learner(two_classes(), metrics=accuracy, path=tmp_path),weights_of_epochs()
    learn.fit(3, .1, cbs=[figures([.5, .7, .6], 'accuracy'), look, SaveModel('accuracy')])
    assert_same(learn.model.state_dict(), seen[1])


def test_with_opt_goes_on_exactly_from_the_best_epoch(tmp_path):
    "As if the epochs after the best had not been."
    dls = two_classes()
    def learner(n_epoch, values):
        learn = plain_learner(dls, opt_func=Adam, path=tmp_path)
        learn.fit(n_epoch, .1, cbs=[figures(values), SaveModel(with_opt=True)])
        learn.fit(2, .1)
        return learn
    assert_same(learner(4, [2., 1., 3., 3.]).model.state_dict(), learner(2, [2., 1.]).model.state_dict())


def test_early_stopping_and_the_best_weights(tmp_path, capsys):
    learn,(seen, look) = plain_learner(two_classes(), path=tmp_path),weights_of_epochs()
    learn.fit(9, .1, cbs=[EarlyStopping(patience=2), SaveModel(), look, figures([3., 1., 2., 2., 0.])])
    assert len(seen) == 4
    assert_same(learn.model.state_dict(), seen[1])


def test_the_average_is_what_is_kept(tmp_path):
    learn,means = lm_learner(averaging=ASGD(start=3), path=tmp_path),[]
    def look(learn):
        with learn.averaged(): means.append(snapshot(learn.model))
    learn.fit(3, .1, cbs=[figures([3., 1., 2.]), Do('after_epoch', look, order=15), SaveModel()])
    assert_same(learn.model.state_dict(), means[1])
    learn.fit(1, .1)


def test_averaging_goes_on_from_the_best_epoch(tmp_path):
    def learner(n_epoch, values):
        learn = lm_learner(averaging=ASGD(start=3), path=tmp_path)
        learn.dls.train.seed = 5
        learn.fit(n_epoch, .1, cbs=[figures(values), SaveModel(with_opt=True)])
        return learn
    a,b = learner(3, [3., 1., 2.]),learner(2, [3., 1.])
    assert a.average.n == b.average.n and a.average.swapped and b.average.swapped
    assert_same(a.model.state_dict(), b.model.state_dict())
    assert_same(a.average.mean.state_dict(), b.average.mean.state_dict())


def test_no_epoch_improved(tmp_path, capsys):
    "The file of an earlier run is neither loaded nor touched."
    plain_learner(two_classes(), path=tmp_path).save('model')
    before = (tmp_path / 'models' / 'model.safetensors').read_bytes()
    learn,(seen, look) = plain_learner(two_classes(), path=tmp_path),weights_of_epochs()
    learn.fit(2, .1, cbs=[figures([math.nan] * 2), look, SaveModel()])
    assert_same(learn.model.state_dict(), seen[-1])
    assert (tmp_path / 'models' / 'model.safetensors').read_bytes() == before
    assert 'No epoch gave a number for valid_loss' in capsys.readouterr().out


@pytest.mark.parametrize('epoch', [0, 1])
@pytest.mark.parametrize('outer', [False, True])
def test_the_first_error_is_the_one_that_is_seen(epoch, outer, tmp_path, capsys):
    "Also where an error is being handled when training begins."
    def fail(learn):
        if learn.epoch == epoch and learn.iter == 3 and learn.training: raise FloatingPointError("first")
    learn,last = plain_learner(two_classes(), path=tmp_path),[]
    cbs = [SaveModel(), Do('after_loss', fail), Do('after_step', lambda learn: last.append(snapshot(learn.model)))]
    with pytest.raises(FloatingPointError, match='first') as caught:
        if not outer: learn.fit(3, .1, cbs=cbs)
        try: raise KeyError
        except KeyError: learn.fit(3, .1, cbs=cbs)
    assert outer or caught.value.__context__ is None
    assert_same(learn.model.state_dict(), last[-1])
    out = capsys.readouterr().out
    assert ("'model' the weights of epoch 0" in out) == bool(epoch)


def test_a_fit_within_the_handling_of_an_error_ended_well(tmp_path):
    learn,(seen, look) = plain_learner(two_classes(), path=tmp_path),weights_of_epochs()
    try: raise KeyError
    except KeyError: learn.fit(3, .1, cbs=[figures([2., 1., 3.]), look, SaveModel()])
    assert_same(learn.model.state_dict(), seen[1])


def test_ctrl_c_leaves_the_best_weights(tmp_path):
    def stop(learn):
        if learn.epoch == 1 and learn.iter == 3: raise KeyboardInterrupt
    learn,(seen, look) = plain_learner(two_classes(), path=tmp_path),weights_of_epochs()
    learn.fit(3, .1, cbs=[SaveModel(), look, Do('after_step', stop)])
    assert learn.interrupted and len(seen) == 1
    assert_same(learn.model.state_dict(), seen[0])


def test_nothing_is_loaded_when_another_callback_refuses_to_begin(tmp_path, capsys):
    def refuse(learn): raise ValueError("refused")
    learn = plain_learner(two_classes(), path=tmp_path, cbs=SaveModel())
    learn.fit(1, .1)
    capsys.readouterr()
    with pytest.raises(ValueError, match='refused'): learn.fit(1, .1, cbs=Do('before_fit', refuse, order=-50))
    assert not capsys.readouterr().out


@pytest.mark.parametrize('every, epochs', [(True, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3])])
def test_a_file_for_every_epoch(every, epochs, tmp_path):
    learn,(seen, look) = plain_learner(two_classes(), path=tmp_path),weights_of_epochs()
    learn.fit(4, .1, cbs=[look, SaveModel(fname='m', every_epoch=every)])
    assert sorted(p.name for p in (tmp_path / 'models').iterdir()) == [f'm_{e}.safetensors' for e in epochs]
    assert_same(learn.model.state_dict(), seen[-1])
    assert_same(plain_learner(two_classes(), path=tmp_path).load('m_0').model.state_dict(), seen[0])


def test_a_file_at_the_end(tmp_path):
    dls = two_classes()
    dls.valid = None                                              # which needs no figure
    learn = plain_learner(dls, path=tmp_path)
    learn.fit(2, .1, cbs=SaveModel(at_end=True))
    assert_same(plain_learner(dls, path=tmp_path).load('model').model.state_dict(), learn.model.state_dict())


# The rate

@pytest.mark.parametrize('values, patience, min_lr, rates', [
    ([3, 4, 2, 2, 2], 1, 0., [1., .1, .1, .01, .001]), ([3, 4, 4, 4, 4], 2, 0., [1., 1., .1, .1, .01]),
    ([3, 4, 2, 4, 1], 2, 0., [1., 1., 1., 1., 1.]), ([math.nan] * 3, 1, .05, [.1, .05, .05])])
def test_the_rate_falls_on_plateaus(values, patience, min_lr, rates):
    learn,seen = plain_learner(two_classes(), lr=1.),[]
    look = Do('after_epoch', lambda learn: seen.append(learn.opt.param_groups[0]['lr']), order=90)
    learn.fit(len(values), cbs=[figures(values), ReduceLROnPlateau(patience=patience, min_lr=min_lr), look])
    assert np.allclose(seen, rates)
    learn.fit(1)
    assert learn.opt.param_groups[0]['lr'] == 1., "the next fit begins with its own rate"


def test_a_rate_below_the_lowest_does_not_rise():
    learn = plain_learner(two_classes(), lr=.01)
    learn.fit(2, cbs=[figures([1., 2.]), ReduceLROnPlateau(min_lr=.1)])
    assert learn.opt.param_groups[0]['lr'] == .01


def test_a_schedule_and_a_plateau_contradict_each_other():
    with pytest.raises(ValueError, match='under a schedule'):
        plain_learner(two_classes()).fit_one_cycle(1, cbs=ReduceLROnPlateau())


def test_they_stay_out_of_the_range_test(tmp_path):
    cbs = [EarlyStopping(), SaveModel(), ReduceLROnPlateau()]
    learn = lm_learner(path=tmp_path, cbs=cbs)
    learn.lr_find(num_it=30, show_plot=False)
    assert not (tmp_path / 'models').exists() and not learn.record


def test_fastais_names():
    assert EarlyStoppingCallback is EarlyStopping and SaveModelCallback is SaveModel


# Lives that were cut off, and files of other days

class DiesIn(Callback):
    "An epoch of a fit of so many."
    order,decides,in_lr_find = 1000, False, False
    def __init__(self, n_epoch, epoch): self.n_epoch,self.epoch = n_epoch,epoch

    def after_batch(self, learn):
        if learn.training and (learn.n_epoch, learn.epoch) == (self.n_epoch, self.epoch): raise SystemError('killed')


@pytest.mark.parametrize(('method', 'n_epoch', 'dies', 'every', 'with_opt'), [
    ('fit', 4, 2, '1000steps', False), ('fit', 4, 2, '3steps', False), ('fit', 4, 2, '1epoch', False),
    ('fine_tune', 3, 1, '5min', True)])
def test_a_better_epoch_after_the_last_checkpoint_comes_again(tmp_path, method, n_epoch, dies, every, with_opt):
    "The file is newer than the checkpoint, and the run, also one of two stages, goes on all the same."
    data = two_classes()
    def life(folder, *cbs):
        learn = plain_learner(data, path=tmp_path / folder)
        getattr(learn, method)(n_epoch, .1, cbs=[SaveModel(with_opt=with_opt), *cbs],
                               checkpoint=tmp_path / folder / 'run', every=every)
        return snapshot(learn.model)
    whole = life('whole')
    with pytest.raises(SystemError): life('cut', DiesIn(n_epoch, dies))
    assert_same(life('cut'), whole)


def test_a_run_does_not_end_with_the_weights_of_another_file(tmp_path):
    data = two_classes()
    def life(*cbs):
        learn = plain_learner(data, path=tmp_path)
        learn.fit(3, .1, cbs=[SaveModel(), *cbs, figures([1., 2., 3.])], checkpoint=tmp_path / 'run', every='1epoch')
    with pytest.raises(SystemError): life(DiesIn(3, 2))
    plain_learner(data, path=tmp_path).save('model')
    with pytest.raises(ValueError, match='does not hold the best weights.*The model holds the last ones'): life()


def test_loading_a_file_binds_no_later_fit(tmp_path):
    learn = plain_learner(two_classes(), path=tmp_path, cbs=SaveModel())
    learn.fit(1, .1)
    learn.save('a')
    learn.fit(1, .1)
    learn.load('a')
    learn.fit(1, .1)
    learn = plain_learner(two_classes(), path=tmp_path)
    best = SaveModel(with_opt=True, reset_on_fit=False)
    learn.fit(3, .1, cbs=[figures([2., 1., 3.]), best])
    held = snapshot(learn.model)
    learn.fit(1, .1, cbs=[figures([4.]), best])
    assert_same(snapshot(learn.model), held)
