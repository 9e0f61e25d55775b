"The search of settings: what is tried, what is pruned, what a kill leaves, and what is refused."
import json
import math
import os
import signal
import subprocess
import sys
from copy import copy
from pathlib import Path

import optuna
import pytest
import torch
from training_helpers import lm_data

from awdtext import tune as module
from awdtext.cli import main
from awdtext.core import random_states
from awdtext.models.awd_lstm import AWDLSTMConfig
from awdtext.text_learner import language_model_learner
from awdtext.training.callback import Callback
from awdtext.tune import read_space, spaces, tune

tiny = dict(emb_sz=4, n_hid=6, n_layers=1)
config = AWDLSTMConfig(**tiny)


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)    # on models this small, two threads only wait for each other


@pytest.fixture
def out(tmp_path): return tmp_path / 'study'


def search(out, n_trials=3, n_epoch=1, space=None, dls=None, **kwargs):
    return tune(dls or lm_data(200, 60), n_trials, n_epoch, space, out, **{'config': tiny, **kwargs})


def drawn(found): return [t.params for t in found.study.trials if t.state.name != 'FAIL']


def losses(found): return [t.intermediate_values for t in found.study.trials if t.state.name != 'FAIL']


@pytest.fixture
def scripted(monkeypatch):
    "No training: each trial reports what `losses_of(drawn)` lists, through the watching callback."
    def replace(losses_of):
        def train(trial, dls, config, n_epoch):
            from types import SimpleNamespace
            watch = module._Watch(trial)
            for epoch, loss in enumerate(losses_of(trial.params)):
                learn = SimpleNamespace(record=[{'valid_loss': loss}], epoch=epoch, n_epoch=n_epoch)
                try: watch.after_epoch(learn)
                except module.CancelFitException: return 'pruned', None
                except FloatingPointError: return 'diverged', None
            return 'complete', loss
        monkeypatch.setattr(module, '_train', train)
    return replace


# What is tried

def test_the_same_study_twice_has_the_same_trials(tmp_path):
    a,b = (search(tmp_path / name, 2, 2) for name in 'ab')
    assert drawn(a) == drawn(b) and losses(a) == losses(b)
    other = search(tmp_path / 'c', 2, seed=1)
    assert drawn(a) != drawn(other)


def test_a_study_in_two_calls_is_the_study_in_one(tmp_path, scripted):
    "Beyond the random start of the sampler, too: 14 trials."
    scripted(lambda p: [p['lr'] + 1, p['lr']])
    whole = search(tmp_path / 'a', 14, 2)
    for n in (3, 12, 14): parts = search(tmp_path / 'b', n, 2)
    assert drawn(whole) == drawn(parts) and losses(whole) == losses(parts)
    assert len({json.dumps(p) for p in drawn(whole)}) == 14


def test_finding_the_settings_trains_a_learner_the_same_way(out):
    "The best trial's loss comes out again from `best`, by the public way."
    found,dls = search(out, 3, 2),lm_data(200, 60)
    assert json.loads((out / 'best.json').read_text()) == found.best
    torch.manual_seed(0)
    module.seed_all(42)
    for dl in (dls.train, dls.valid): dl.seed = 42
    learn = language_model_learner(dls, **found.best)
    learn.fit_one_cycle(2)
    assert learn.record[-1]['valid_loss'] == found.table.valid_loss[0]


def test_nothing_of_the_caller_is_changed_and_nothing_of_theirs_matters(out, tmp_path):
    dls = lm_data(200, 60)
    next(iter(dls.train))
    dls.train.seed = 5
    kept = dls.train.seed, dls.train.epoch, dls.valid.seed, dls.valid.epoch
    random,verbosity = random_states(),optuna.logging.get_verbosity()
    found = search(out, 2, dls=dls)
    assert (dls.train.seed, dls.train.epoch, dls.valid.seed, dls.valid.epoch) == kept
    assert torch.equal(random['torch'], random_states()['torch']) and optuna.logging.get_verbosity() == verbosity
    assert losses(found) == losses(search(tmp_path / 'fresh', 2))


def test_everything_that_can_be_searched(out):
    space = {**spaces['dropouts'], 'input_weight_p': [0., .5], 'alpha': (0., 4.), 'beta': [1]}
    found = search(out, 2, space=space)
    assert set(found.best) == {'config', 'lr', 'wd', 'alpha', 'beta'} and found.best['config']['n_hid'] == 6
    best = found.table.iloc[0]
    for name in space: assert (found.best | found.best['config'])[name] == best[name]
    assert all(space['lr'][0] <= p['lr'] <= space['lr'][1] and p['beta'] == 1 for p in drawn(found))


# What mattered

def test_a_setting_that_decides_is_the_one_that_mattered(out, scripted):
    "Also where the trials with bad rates are pruned or diverge."
    def loss(p):
        last = (math.log(p['lr']) - math.log(2e-2)) ** 2
        return [math.nan] if p['lr'] > 2.5e-2 else [last + 2, last + 1, last + .01 * p['wd']]
    scripted(loss)
    found = search(out, 30, 3)
    assert {'complete', 'pruned', 'diverged'} == set(found.table.end)
    assert next(iter(found.importances)) == 'lr' and found.importances['lr'] > .7
    assert sum(found.importances.values()) == pytest.approx(1)
    ended = found.table.end.tolist()
    assert ended == sorted(ended, key=['complete', 'pruned', 'diverged'].index)
    axes = found.plot()
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(found.importances)[::-1]
    for ax in axes[1:]: assert sum(len(points.get_offsets()) for points in ax.collections) == 30


def test_three_trials_say_nothing_about_what_mattered(out):
    found = search(out, 3)
    assert found.importances == {} and len(found.plot()) == 4
    assert (out / 'what_mattered.png').stat().st_size > 1000


# Pruning

def test_what_is_worse_than_the_median_is_pruned_and_not_before_the_rate_has_risen(out, scripted):
    "The rule of the median by hand: from the sixth trial on, from the second epoch on, not after the last."
    scripted(lambda p: [9 + p['lr'], 8 + p['lr'], 7 - p['lr']])
    found,seen = search(out, 20, 3),[]
    for t in found.study.trials:
        values = t.intermediate_values
        median = sorted(seen)[len(seen) // 2] if len(seen) % 2 else sum(sorted(seen)[len(seen) // 2 - 1:][:2]) / 2 \
            if seen else math.inf
        is_bad = len(seen) >= 5 and values[1] > median
        assert (t.state.name, len(values)) == (('PRUNED', 2) if is_bad else ('COMPLETE', 3))
        if t.state.name == 'COMPLETE': seen.append(values[1])
    assert 'pruned' in set(found.table.end)


def test_a_real_training_is_pruned(out):
    "Five trials with a sensible rate, then tiny ones, which are given up."
    class Rates:
        def __init__(self, seed=0): self.n = seed
        def __getattr__(self, name): return getattr(optuna.samplers.RandomSampler(0), name)
        def sample_independent(self, study, trial, name, distribution): return 1e-2 if self.n < 5 else 1e-6
        def infer_relative_search_space(self, study, trial): return {}
        def sample_relative(self, study, trial, space): return {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.samplers, 'TPESampler', Rates)
        found = search(out, 7, 3, {'lr': (1e-7, 1e-1, 'log')}, seed=0)
    assert found.table.sort_values('trial').end.tolist() == ['complete'] * 5 + ['pruned'] * 2
    assert found.table.sort_values('trial').epochs.tolist() == [3] * 5 + [2] * 2


def test_a_loss_that_is_no_number_is_a_trial_too(out, capsys):
    with pytest.raises(ValueError, match='All 2 trials diverged: search lower rates'):
        search(out, 2, space={'lr': (1e29, 1e30)})
    assert 'diverged after 0 epochs' in capsys.readouterr().out


# Stopped, killed, gone on

class StopIn(Callback):
    "Ctrl-C or an error in a trial."
    order = -50
    def __init__(self, error): self.error = error
    def before_batch(self, learn): raise self.error


@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('out of memory')])
def test_a_trial_that_was_stopped_does_not_count(out, tmp_path, monkeypatch, error):
    whole,learner = search(tmp_path / 'whole', 4),module.language_model_learner
    search(out, 2)
    monkeypatch.setattr(module, 'language_model_learner', lambda *a, **k: learner(*a, **k).add_cb(StopIn(error)))
    with pytest.raises(type(error)): search(out, 4)
    monkeypatch.setattr(module, 'language_model_learner', learner)
    found = search(out, 4)
    assert drawn(found) == drawn(whole) and losses(found) == losses(whole)
    assert sorted(found.table.end) == ['complete'] * 4 + ['failed']
    assert found.table.end.iloc[-1] == 'failed'


killed = """import os, signal, sys, torch
sys.path[:0] = ['tests', '.']
torch.set_num_threads(1)
from training_helpers import lm_data
from awdtext import tune
from awdtext.training.callback import Callback
class Kill(Callback):
    def before_batch(self, learn):
        if learn.epoch == 1: os.kill(os.getpid(), signal.SIGKILL)
make,n = tune.language_model_learner,[]
def learner(*args, **kwargs):
    n.append(1)
    return make(*args, **kwargs).add_cb(Kill()) if len(n) == 3 else make(*args, **kwargs)
tune.language_model_learner = learner
tune.tune(lm_data(200, 60), 4, 2, out=sys.argv[1], config=dict(emb_sz=4, n_hid=6, n_layers=1))
"""


@pytest.mark.skipif(os.name != 'posix', reason="needs SIGKILL")
def test_a_killed_study_goes_on(out, tmp_path):
    done = subprocess.run([sys.executable, '-c', killed, out], cwd=Path(__file__).parent.parent)
    assert done.returncode == -signal.SIGKILL
    with (out / 'study.log').open('a') as f: f.write('{"op_code": 6, "tri')   # a disk that got half a line
    (out / 'study.log.lock').touch()
    found,whole = search(out, 4, 2),search(tmp_path / 'whole', 4, 2)
    assert [t.state.name for t in found.study.trials] == ['COMPLETE', 'COMPLETE', 'FAIL', 'COMPLETE', 'COMPLETE']
    assert drawn(found) == drawn(whole) and losses(found) == losses(whole)


def test_enough_trials_are_there(out, scripted):
    whole = search(out, 3)
    scripted(lambda p: pytest.fail('trained again'))
    for n in (3, 1): assert search(out, n).best == whole.best


# What is refused

@pytest.mark.parametrize('bad, message', [
    (dict(n_trials=0), 'n_trials=0: use a whole number, 1 or more'),
    (dict(n_trials=2.5), 'n_trials=2.5'),
    (dict(n_epoch=0), 'n_epoch=0'),
    (dict(space={}), 'The space is empty: search some of drop_mult'),
    (dict(space='all'), "no space 'all': use one of overall, dropouts"),
    (dict(space={'n_hid': (8., 16.)}), 'The space has n_hid: what can be searched is drop_mult'),
    (dict(config='huge'), "no preset 'huge'"),
])
def test_bad_calls_leave_nothing(out, bad, message):
    def never(): pytest.fail('the data were made')
    with pytest.raises(ValueError, match=message): search(out, dls=never, **bad)
    assert not out.exists()


@pytest.mark.parametrize('values, message', [
    (.1, 'give .low, high.'), ((.1,), 'give .low, high.'), ([], 'list of choices'), ((1e-3, 1e-2, 'lin'), 'give'),
    (('a', 'b'), 'use numbers'), ((0, math.inf), 'use numbers'), ([True], 'use numbers'), ((1e-2, 1e-2), 'lower end'),
    ((0., 1e-2), '0.0 is too small'), ((0, 1, 'log'), '0 is too small'), ([-1.], '-1.0 is too small'),
])
def test_ranges_that_are_none(values, message):
    with pytest.raises(ValueError, match=message): read_space({'lr': values}, config)


def test_dropouts_that_are_none():
    for space, message in (({'input_p': (0., 1.)}, 'input_p=1.0 is no dropout'), ({'input_p': [-.1]}, 'too small'),
                           ({'drop_mult': (0., 5.)}, 'input_p=1.25'), ({'drop_mult': [1], 'embed_p': [0]}, 'embed_p')):
        with pytest.raises(ValueError, match=message): read_space(space, config)


@pytest.mark.parametrize('change, message', [
    (dict(space={'lr': (1e-3, 1e-2)}), 'space.drop_mult was .* and is not there'),
    (dict(dls='other'), 'data.train.*content was'), (dict(n_epoch=2), 'n_epoch was 1 and is 2'),
    (dict(seed=7), 'seed was 42 and is 7'), (dict(config={**tiny, 'n_hid': 7}), 'config.n_hid was 6 and is 7'),
])
def test_another_study_is_refused(out, change, message):
    search(out, 2)
    log = (out / 'study.log').read_bytes()
    if 'dls' in change: change = {'dls': lm_data(240, 60)}
    with pytest.raises(ValueError, match=message) as error: search(out, 3, **change)
    assert 'holds another study' in str(error.value) and '\n' not in str(error.value)
    assert (out / 'study.log').read_bytes() == log


def test_folders_that_are_not_ours(tmp_path, out):
    (tmp_path / 'thesis.tex').touch()
    with pytest.raises(ValueError, match='not the folder of a study: it holds thesis.tex'): search(tmp_path)
    with pytest.raises(NotADirectoryError, match='thesis.tex is no folder'): search(tmp_path / 'thesis.tex')
    out.mkdir()
    for text in ('a diary', '{"op_code": 0, "user": "me"}\n'):
        (out / 'study.log').write_text(text)
        with pytest.raises(ValueError, match='study.log is damaged or no journal'): search(out)
        assert (out / 'study.log').read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['study', 'thesis.tex']


def test_a_folder_in_use(out):
    search(out, 1)
    with module.FileLock(out / '.lock'), pytest.raises(RuntimeError, match='at work in another process'): search(out)


def test_data_that_cannot_be_used(out):
    labelled,no_valid = copy(lm_data()),copy(lm_data())
    labelled.is_lm,no_valid.valid = False,None
    for dls in (labelled, no_valid):
        with pytest.raises(ValueError, match='training and validation data of a language model'): search(out, dls=dls)
    assert not out.exists()


@pytest.mark.parametrize('missing', ['optuna', 'sklearn'])
def test_without_the_extra(out, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'awdtext\[tune\]'"): search(out)
    assert not out.exists()


# From the shell

def test_the_command(tmp_path, capsys, monkeypatch):
    from awdtext.models.awd_lstm import presets
    monkeypatch.setitem(presets, 'small', config)
    (tmp_path / 'text.txt').write_text('the cat sat on the mat\nthe dog sat on the log\n' * 20)
    data = ['--data', f'{tmp_path}/text.txt', '--bs', '4', '--seq-len', '8']
    study = ['tune', *data, '--epochs', '1', '--out', f'{tmp_path}/study']
    assert main([*study, '--n-trials', '2']) == 0
    assert main([*study, '--n-trials', '4']) == 0
    said = capsys.readouterr().out
    assert 'The study has 2 of 4 trials.' in said and 'What mattered' in said and '\r' not in said
    best = f'{tmp_path}/study/best.json'
    assert f'awdtext train-lm --settings {best}' in said
    assert main(['train-lm', *data, '--settings', best, '--out', f'{tmp_path}/lm']) == 0
    capsys.readouterr()
    for argv, message in ((['--settings', f'{tmp_path}/text.txt'], 'text.txt is no file of settings'),
                          (['--settings', f'{tmp_path}/nothing.json'], 'There is no file'),
                          (['--drop-mult', '9'], 'is no dropout probability')):
        assert main(['train-lm', *data, '--out', f'{tmp_path}/new', *argv]) == 1
        said = capsys.readouterr()
        assert message in said.err and len(said.err.splitlines()) == 1 and not (tmp_path / 'new').exists()
    (tmp_path / 'list.json').write_text('{"epochs": 3}')
    assert main(['train-lm', '--settings', f'{tmp_path}/list.json']) == 1
    assert 'it may hold config, drop_mult, lr' in capsys.readouterr().err
