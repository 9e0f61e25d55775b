"Files: what comes back is what was saved, what is damaged or not ours is refused, the old file survives everything."
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from training_helpers import Do, assert_same, lm_learner, plain_learner, snapshot, two_classes

from awdtext.training import checkpoint
from awdtext.training.checkpoint import bundle_path, load_opt_state, opt_state, read_bundle, write_bundle
from awdtext.training.metrics import accuracy
from awdtext.training.optim import SGD, Adam
from awdtext.training.rnn import ASGD, NTASGD

tree = {'weights': {'a.b': torch.arange(3.), 'view': torch.ones(2, 2)[:, :1], 'half': torch.ones(2).bfloat16()},
        'flags': torch.tensor([True, False]), 'n': torch.tensor(7), 'empty': torch.zeros(0, 3), 'none': {},
        'words': ['é', '世界', '"\n'], 'deep': [{'x': [None, 1, 2.5, True, torch.tensor([1, 2])]}]}


def same(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# Bundles

def test_what_is_read_is_what_was_written(tmp_path):
    path = write_bundle(tmp_path / 'deep/folders/x.y', tree, 'test')
    assert path.name == 'x.y.safetensors' and bundle_path(path) == path
    assert same(read_bundle(tmp_path / 'deep/folders/x.y'), {**tree, 'kind': 'test'})


def test_shared_memory_and_views_are_written_as_they_are_seen(tmp_path):
    base = torch.arange(12.).view(3, 4)
    back = read_bundle(write_bundle(tmp_path / 'x', {'a': base, 'b': base, 'c': base.t(), 'd': base[1]}, 'test'))
    assert_close(back['c'], base.t())
    assert_close(back['d'], base[1])
    assert_close(back['a'], back['b'])


def test_any_reader_of_safetensors_finds_the_tensors_by_name(tmp_path):
    tensors = load_file(write_bundle(tmp_path / 'x', tree, 'test'))
    assert {'weights.a.b', 'weights.view', 'flags', 'deep.0.x.4'} <= set(tensors)


def test_two_tensors_of_one_path_are_refused(tmp_path):
    with pytest.raises(ValueError, match="path a.b"):
        write_bundle(tmp_path / 'x', {'a.b': torch.ones(1), 'a': {'b': torch.zeros(1)}}, 'test')


@pytest.mark.parametrize('wrong,match', [
    ({'f': print}, "f is a builtin"), ({1: 2}, "the key 1"), ({'a': {'$tensor': 1}}, r"\$tensor"),
    ({'a': [{'b': object()}]}, r"a\.0\.b is a object"), ({'p': b'bytes'}, "p is a bytes")])
def test_what_cannot_be_saved_is_told_by_its_path(tmp_path, wrong, match):
    with pytest.raises(TypeError, match=match): write_bundle(tmp_path / 'x', wrong, 'test')
    assert list(tmp_path.iterdir()) == []


def test_every_cut_short_file_is_refused(tmp_path):
    whole = write_bundle(tmp_path / 'x', {'w': torch.arange(3.), 'words': ['a']}, 'test').read_bytes()
    cut = tmp_path / 'cut.safetensors'
    for n in range(len(whole)):
        cut.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="cut.safetensors is damaged or no awdtext file"): read_bundle(cut)
    cut.write_bytes(whole + b'more')
    with pytest.raises(ValueError, match="damaged"): read_bundle(cut)


def test_every_changed_bit_is_seen(tmp_path):
    "In numbers, words and settings alike: what is read is what was written, or nothing is."
    tree = {'w': torch.arange(3.), 'words': ['a', 'bc'], 'config': {'hidden_p': .15}}
    whole = write_bundle(tmp_path / 'x', tree, 'test').read_bytes()
    changed,silent = tmp_path / 'changed.safetensors', 0
    for i in range(8, len(whole)):
        for bit in (0, 3):
            changed.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1:])
            try: found = read_bundle(changed)
            except ValueError as e:
                assert 'changed.safetensors' in str(e)
                continue
            assert torch.equal(found['w'], tree['w']) and found['words'] == tree['words'], i
            assert found['config'] == tree['config'], i
            silent += 1
    assert silent < 30, "where a space or the name of the checksum itself has changed"


def write_zip(path):
    with zipfile.ZipFile(path, 'w') as z: z.writestr('a.txt', 'text' * 99)


@pytest.mark.parametrize('write', [
    lambda p: p.write_text('This is a text and not a file of weights.\n' * 20),
    lambda p: p.write_bytes(pickle.dumps(list(range(999)))), write_zip,
    lambda p: torch.save({'a': torch.ones(3)}, p), lambda p: p.write_bytes(bytes(500)),
    lambda p: p.write_bytes(b'\xff' * 500), lambda p: p.write_text(json.dumps(dict(weights=[1, 2])))],
    ids=['text', 'pickle', 'zip', 'torch', 'zeros', 'ones', 'json'])
def test_files_that_are_not_ours_are_refused(tmp_path, write):
    path = tmp_path / 'x.safetensors'
    write(path)
    with pytest.raises(ValueError, match="x.safetensors is damaged or no awdtext file"): read_bundle(path)


def test_other_bundles_are_refused_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / 'x.safetensors'
    save_file({'a': torch.ones(1)}, path, metadata={'format': 'pt'})
    with pytest.raises(ValueError, match="was not written by awdtext"): read_bundle(path)
    write_bundle(path, {}, 'encoder')
    with pytest.raises(ValueError, match="kind 'encoder', but one of kind 'classifier' or 'language_model' is needed"):
        read_bundle(path, ('classifier', 'language_model'))
    assert read_bundle(path, ('classifier', 'encoder'))['kind'] == 'encoder'
    monkeypatch.setattr(checkpoint, '_FORMAT_VERSION', 99)
    with pytest.raises(ValueError, match="format version 2; this awdtext reads version 99"): read_bundle(path)
    with pytest.raises(FileNotFoundError, match="There is no file"): read_bundle(tmp_path / 'nothing')
    with pytest.raises(FileNotFoundError, match="There is no file"): read_bundle(tmp_path)


@pytest.mark.parametrize('step', ['save_file', '_sync', 'os.replace'])
@pytest.mark.parametrize('error', [OSError("disk full"), KeyboardInterrupt()])
def test_old_file_survives_an_error_at_every_step(tmp_path, monkeypatch, step, error):
    path = write_bundle(tmp_path / 'x', {'n': 1}, 'test')
    def fail(*args, **kwargs): raise error
    with monkeypatch.context() as m:
        m.setattr(f'awdtext.training.checkpoint.{step}', fail)
        with pytest.raises(type(error)): write_bundle(path, {'n': 2}, 'test')
    assert read_bundle(path)['n'] == 1
    assert [p.name for p in tmp_path.iterdir()] == ['x.safetensors']


killed = '''
import os, signal, sys
from awdtext.training import checkpoint
checkpoint.os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write_bundle(sys.argv[1], {'n': 2}, 'test')
'''


@pytest.mark.skipif(os.name != 'posix', reason="kills as POSIX does")
def test_old_file_survives_a_process_that_is_killed(tmp_path):
    path = write_bundle(tmp_path / 'x', {'n': 1}, 'test')
    assert subprocess.run([sys.executable, '-c', killed, path]).returncode == -signal.SIGKILL
    assert read_bundle(path)['n'] == 1
    assert len(list(tmp_path.iterdir())) == 2, "killed before the rename"
    write_bundle(path, {'n': 3}, 'test')
    assert read_bundle(path)['n'] == 3


# Optimisers

def momentum(params, **kwargs): return torch.optim.SGD(params, momentum=.9, **kwargs)


@pytest.mark.parametrize('opt_func', [SGD, momentum, Adam, torch.optim.Rprop, torch.optim.Adagrad, torch.optim.ASGD,
                                      torch.optim.NAdam], ids=lambda f: f.__name__)
def test_every_optimiser_goes_on_where_it_was(tmp_path, opt_func):
    dls = two_classes()
    whole = plain_learner(dls, opt_func, .01, path=tmp_path)
    whole.fit(2)
    whole.save('half')
    resumed = plain_learner(dls, opt_func, .01, path=tmp_path).load('half')
    for learn in (whole, resumed): learn.fit(2)
    assert_same(snapshot(whole.model), snapshot(resumed.model))
    def figures(learn): return [{k: v for k, v in r.items() if k not in ('time', 'items/s')} for r in learn.record]
    assert figures(whole) == figures(resumed)
    assert whole.recorder.losses == resumed.recorder.losses and whole.recorder.lrs == resumed.recorder.lrs


@pytest.mark.parametrize('saved_after', [2, 5, 7])
@pytest.mark.parametrize('how', [dict(n=1), dict(n=2, every=4), dict(start=30)], ids=str)
def test_averaging_goes_on_where_it_was(tmp_path, how, saved_after):
    dls = two_classes()
    whole,resumed = (plain_learner(dls, lr=3., cbs=NTASGD(**how), path=tmp_path, metrics=accuracy) for _ in range(2))
    whole.fit(saved_after)
    whole.save('half')
    resumed.load('half')
    for learn in (whole, resumed): learn.fit(9 - saved_after)
    assert whole.average.n == resumed.average.n
    assert whole.recorder.averaging_from == resumed.recorder.averaging_from
    assert_same(snapshot(whole.model), snapshot(resumed.model))
    for learn in (whole, resumed): learn.average.show_iterate()
    assert_same(snapshot(whole.model), snapshot(resumed.model))


def test_loading_weights_alone_begins_anew(tmp_path):
    dls = two_classes()
    old = plain_learner(dls, Adam, cbs=ASGD(start=2), path=tmp_path)
    old.fit(2)
    old.save('old')
    new = plain_learner(dls, Adam, cbs=ASGD(start=2), path=tmp_path)
    new.fit(1)
    new.load('old', with_opt=False)
    assert new.opt is None and new.average is None
    assert_same(snapshot(new.model), snapshot(old.model))
    assert new.validate() == old.validate()

    old.save('bare', with_opt=False)
    assert set(read_bundle(tmp_path / 'models/bare')) == {'weights', 'record', 'kind'}
    new.load('bare').fit(1)
    assert new.average.n > 1


def learner_state(learn):
    return snapshot(learn.model), opt_state(learn.opt), list(learn.record), learn.average, list(learn.recorder.losses)


@pytest.mark.parametrize('other,match', [
    (dict(opt_func=SGD), "holds the state of AdamW, but this optimiser is SGD"),
    (dict(opt_func=Adam, model=torch.nn.Linear(3, 4)), r"weight has shape \(2, 3\) in .*bad.* and \(4, 3\) in this"),
    (dict(opt_func=Adam, model=torch.nn.Sequential(torch.nn.Linear(3, 2))), "0.weight is missing"),
    (dict(opt_func=Adam, splitter=lambda m: [[m.weight], [m.bias]]), "parameter group")],
    ids=['opt', 'shape', 'names', 'groups'])
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, other, match):
    dls = two_classes()
    saved = plain_learner(dls, Adam, cbs=ASGD(start=2), path=tmp_path)
    saved.fit(2)
    saved.save('bad')
    learn = plain_learner(dls, path=tmp_path, cbs=ASGD(start=3), **other)
    learn.fit(1)
    before = learner_state(learn)
    with pytest.raises(ValueError, match=match): learn.load('bad')
    after = learner_state(learn)
    assert_same(before[0], after[0])
    assert same(before[1], after[1]) and before[2:] == after[2:] and learn.average is before[3]
    learn.fit(1)


def test_bundles_of_another_kind_and_missing_files(tmp_path):
    learn = lm_learner(path=tmp_path)
    learn.save_encoder('enc')
    with pytest.raises(ValueError, match="kind 'encoder', but one of kind 'checkpoint' is needed"): learn.load('enc')
    with pytest.raises(FileNotFoundError, match="There is no file .*models.nothing.safetensors"): learn.load('nothing')


def test_a_language_model_goes_on_after_a_load(tmp_path):
    whole = lm_learner(averaging=NTASGD(n=0), path=tmp_path, lr=6.)
    whole.fit(8)
    assert whole.average is not None
    whole.save('half')
    resumed = lm_learner(averaging=NTASGD(n=0), path=tmp_path).load('half')
    assert resumed.validate() == whole.validate()
    torch.manual_seed(5)
    whole.fit(1)
    resumed.dls.train.epoch = 8               # the loader's place is not the learner's to keep
    torch.manual_seed(5)
    resumed.fit(1, 6.)
    assert_same(snapshot(whole.model), snapshot(resumed.model))


def test_saving_in_the_middle_of_an_epoch_leaves_training_as_it_was(tmp_path):
    runs = []
    for cbs in (None, Do('after_step', lambda learn: learn.save('now'))):
        learn = lm_learner(averaging=ASGD(start=3), path=tmp_path)
        learn.fit(1, cbs=cbs)
        runs.append(snapshot(learn.model))
    assert_same(*runs)


def test_a_long_run_fits_into_the_files_header(tmp_path):
    "The header of a safetensors file ends at 100 MB."
    learn = plain_learner(two_classes(), path=tmp_path)
    learn.recorder.losses = learn.recorder.lrs = torch.rand(1_000_000).tolist()
    path = learn.save('long')
    with open(path, 'rb') as f: assert int.from_bytes(f.read(8), 'little') < 10_000
    assert plain_learner(two_classes(), path=tmp_path).load('long').recorder.lrs == learn.recorder.lrs


def test_optimiser_state_goes_to_the_same_parameters(tmp_path):
    learn = plain_learner(two_classes(), Adam)
    learn.fit(1)
    tree = read_bundle(write_bundle(tmp_path / 'opt', opt_state(learn.opt), 'opt'))
    fresh = plain_learner(two_classes(), Adam)
    fresh.fit(1, 1e-9)
    load_opt_state(fresh.opt, tree)
    for p, q in zip(fresh.model.parameters(), learn.model.parameters()):
        for k, v in learn.opt.state[q].items(): assert torch.equal(fresh.opt.state[p][k], v)
    assert fresh.opt.param_groups[0]['betas'] == (.9, .99) and fresh.opt.param_groups[0]['lr'] == .1
