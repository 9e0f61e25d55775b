"A run that is killed, at any moment and however often, ends as if it had not been."
import os
import random
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import killed_runs
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import Do, assert_same, lm_data, lm_learner, plain_learner, snapshot, two_classes

from awdtext.training.callback import Callback, CancelStepException
from awdtext.training.optim import SGD, Adam
from awdtext.training.resume import RunFolder
from awdtext.training.rnn import ASGD, NTASGD, GradientClip

here = Path(__file__).parent
needs_posix = pytest.mark.skipif(os.name != 'posix', reason="kills as POSIX does")


def same(a, b, path=''):
    "Two trees of tensors and plain values are the same to the last bit."
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor): assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for k in a: same(a[k], b[k], f'{path}.{k}')
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)): same(x, y, f'{path}.{i}')
    else: assert a == b, f'{path}: {a} {b}'


# SIGKILL, 40 times

def killed(kind, folder, n_kills, seed):
    command = [sys.executable, here / 'killed_runs.py', kind, folder, str(n_kills), str(seed)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert out.returncode == 0, out.stderr + out.stdout
    assert out.stdout.startswith(f'{n_kills} kills')
    return [torch.load(p) for p in sorted(folder.glob('result-*.pt'))]


@needs_posix
@pytest.mark.parametrize('kind', ['averaged', 'one_cycle', 'fine_tuned', 'shuffled', 'two_stages'])  # eight times each
def test_killed_at_random_moments_a_run_ends_bit_identical(kind, tmp_path):
    (uncut,) = killed(kind, tmp_path / 'uncut', 0, 0)
    results = killed(kind, tmp_path / 'killed', 8, sum(map(ord, kind)))
    for r in results: same(r, uncut)


# Killed right after each checkpoint

class Killed(BaseException): "Ends the process, as far as this test is concerned."


@pytest.mark.parametrize('every', ['1epoch', '2steps'])
@pytest.mark.parametrize('kind', killed_runs.kinds)
def test_killed_after_any_checkpoint_a_run_ends_bit_identical(kind, every, tmp_path, monkeypatch):
    "Also where the next life begins at the beginning of an epoch, or after the last one."
    write,left = RunFolder.write,[0]

    def write_and_die(self, tree):
        path = write(self, tree)
        left[0] -= 1
        if not left[0]: raise Killed
        return path

    def life(name):
        random.seed(0)
        return killed_runs.result(killed_runs.kinds[kind](tmp_path / name, every))

    monkeypatch.setattr(RunFolder, 'write', write_and_die)
    uncut = life('uncut')
    n = -left[0]
    for k in range(1, n + 1) if every == '1epoch' else sorted({1, 2, n // 3, n // 2, n - 2, n - 1, n}):
        left[0] = k
        with pytest.raises(Killed): life(f'killed {k}')
        same(life(f'killed {k}'), uncut, f'killed after checkpoint {k} of {n}: ')


def test_ctrl_c_at_any_batch_with_loaders_that_draw_from_the_global_generator(tmp_path):
    random.seed(0)
    uncut = killed_runs.result(killed_runs.shuffled(tmp_path / 'uncut'))
    for n in (3, 17, 18, 19, 20, 40):                              # batches of training and of validation
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(killed_runs.Linger, 'after_pred', partial(Stop.after_pred, Stop(n)), raising=False)
            assert killed_runs.shuffled(tmp_path / str(n)).interrupted
        same(killed_runs.result(killed_runs.shuffled(tmp_path / str(n))), uncut)


# Stopped at every place there is

class Stop(Callback):
    "Presses Ctrl-C in the middle of the batch number `n` (of both passes) of this life."
    in_lr_find,decides,order = False,False,1000
    def __init__(self, n): self.n = n
    def after_pred(self, learn):
        self.n -= 1
        if not self.n: signal.raise_signal(signal.SIGINT)


def a_run(folder, cb=None, n_epoch=2, **kwargs):
    learn = lm_learner(lm_data(240, 130), averaging=NTASGD(n=0), lr=20.)
    learn.fit(n_epoch, cbs=cb, checkpoint=folder, every='1000steps', **kwargs)
    return learn


def test_ctrl_c_at_any_batch_of_both_passes_leaves_a_place_to_go_on_from(tmp_path):
    uncut = a_run(tmp_path / 'uncut')
    for n in range(1, 14):
        folder = tmp_path / str(n)
        learn = a_run(folder, Stop(n))
        if not learn.interrupted: break
        files = sorted(p.name for p in folder.glob('run-*'))
        assert files == ['run-000001.safetensors', 'run-000002.safetensors'], "of the beginning, and the last"
        again = a_run(folder)
        assert_same(snapshot(again.model), snapshot(uncut.model))
        assert again.recorder.losses == uncut.recorder.losses
        assert [r['valid_loss'] for r in again.record] == [r['valid_loss'] for r in uncut.record]
    assert n > 10, "both passes of both epochs"


def test_a_run_that_is_killed_before_its_first_checkpoint_is_due_begins_as_it_began(tmp_path):
    "With its own random numbers and first weights, whatever those of the process are by then."
    uncut = a_run(tmp_path / 'uncut')
    def die(learn): raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): a_run(tmp_path / 'run', Do('after_backward', die))
    again = lm_learner(lm_data(240, 130), averaging=NTASGD(n=0), lr=20.)
    with torch.no_grad():
        for p in again.model.parameters(): p.zero_()
    torch.manual_seed(5)
    again.fit(2, checkpoint=tmp_path / 'run', every='1000steps')
    assert_same(snapshot(again.model), snapshot(uncut.model))
    assert again.recorder.losses == uncut.recorder.losses


def test_the_same_learner_goes_on_too(tmp_path):
    uncut = a_run(tmp_path / 'uncut')
    learn = a_run(tmp_path / 'run', Stop(3))
    assert learn.interrupted
    learn.fit(2, checkpoint=tmp_path / 'run', every='1000steps')
    assert_same(snapshot(learn.model), snapshot(uncut.model))


@needs_posix
def test_sigterm_writes_a_last_checkpoint_and_then_ends_the_process(tmp_path):
    code = f"""if True:
        import signal, sys
        sys.path.insert(0, {str(here)!r})
        from pathlib import Path
        from training_helpers import Do
        from test_training_resume import a_run
        def term(learn):
            if learn.training and learn.epoch == 1 and learn.iter == 1: signal.raise_signal(signal.SIGTERM)
        a_run(Path({str(tmp_path / 'run')!r}), Do('after_pred', term), n_epoch=3)
        print('still alive')"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert out.returncode == -signal.SIGTERM and 'still alive' not in out.stdout, out.stderr
    tree = RunFolder(tmp_path / 'run', {}).files()
    assert len(tree) == 2, "of the beginning, and the last"
    again,uncut = (a_run(tmp_path / name, n_epoch=3) for name in ('run', 'uncut'))
    assert_same(snapshot(again.model), snapshot(uncut.model))


def test_without_a_folder_sigterm_is_not_touched():
    handlers = []
    look = Do('before_fit', lambda learn: handlers.append(signal.getsignal(signal.SIGTERM)))
    plain_learner(two_classes()).fit(1, cbs=look)
    assert handlers == [signal.getsignal(signal.SIGTERM)]


# Finished runs, other runs

def test_a_finished_run_is_loaded_and_trains_no_more(tmp_path, capsys):
    whole,steps = a_run(tmp_path / 'run'),[]
    learn = a_run(tmp_path / 'run', Do('after_step', lambda learn: steps.append(learn.iter)))
    assert not steps and 'finished' in capsys.readouterr().out
    assert_same(snapshot(learn.model), snapshot(whole.model))
    assert learn.record == whole.record and not learn.model.training
    assert learn.average.swapped == whole.average.swapped
    for o in (whole, learn):                                # and both go on in the same way
        torch.manual_seed(1)
        o.fit(1)
    assert_same(snapshot(learn.model), snapshot(whole.model))


def test_gradients_that_wait_for_their_step_are_kept(tmp_path):
    class EverySecond(Callback):
        def after_backward(self, learn):
            if learn.iter % 2 == 0: raise CancelStepException
    data = two_classes(70)
    def run(folder, cb=None):
        learn = plain_learner(data, cbs=EverySecond())
        learn.fit(1, cbs=cb, checkpoint=folder, every='1000steps')
        return snapshot(learn.model)
    uncut = run(tmp_path / 'uncut')
    run(tmp_path / 'run', Stop(5))
    assert_same(run(tmp_path / 'run'), uncut)


def changed(folder, message, **changes):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    kwargs = {'n_train': 240, 'n_epoch': 3, 'lr': None, 'clip': None, 'opt_func': SGD, **changes}
    learn = lm_learner(lm_data(kwargs['n_train'], 130), averaging=NTASGD(n=0), lr=20., opt_func=kwargs['opt_func'])
    if kwargs['clip']: learn.remove_cb(GradientClip).add_cb(GradientClip(kwargs['clip']))
    weights = snapshot(learn.model)
    with pytest.raises(ValueError, match=message): learn.fit(kwargs['n_epoch'], kwargs['lr'], checkpoint=folder)
    assert_same(snapshot(learn.model), weights)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before, "nothing is overwritten"


def test_another_configuration_data_or_version_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    a_run(folder, Stop(9), n_epoch=3)
    changed(folder, 'fit.n_epoch was 3 and is 4', n_epoch=4)
    changed(folder, r'lr was 20.0 and is 10.0', lr=10.)
    changed(folder, 'data.train.tokens was 240 and is 250', n_train=250)
    changed(folder, 'callbacks.GradientClip.max_norm was 0.25 and is 1.0', clip=1.)
    changed(folder, "optimiser.type was 'SGD' and is 'AdamW'", opt_func=Adam)
    monkeypatch.setattr('awdtext.training.run.__version__', '9.9')
    changed(folder, "versions.awdtext was .* and is '9.9'")


def test_other_text_of_the_same_length_is_other_data(tmp_path):
    a_run(tmp_path / 'run', Stop(9))
    dls = lm_data(240, 130)
    dls.train.corpus.ids[7] = dls.train.corpus.ids[8]
    with pytest.raises(ValueError, match='data.train.content was'):
        lm_learner(dls, averaging=NTASGD(n=0), lr=20.).fit(2, checkpoint=tmp_path / 'run')


def test_what_is_no_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='holds notes.txt'): a_run(tmp_path)
    with pytest.raises(NotADirectoryError, match='is a file'): a_run(tmp_path / 'notes.txt')
    assert (tmp_path / 'notes.txt').read_text() == 'mine'
    (tmp_path / 'other').mkdir()
    save_file({'a': torch.zeros(1)}, tmp_path / 'other' / 'run-000001.safetensors')
    with pytest.raises(ValueError, match='not written by awdtext'): a_run(tmp_path / 'other')
    assert load_file(tmp_path / 'other' / 'run-000001.safetensors')['a'] == 0
    learn = lm_learner()
    learn.save(tmp_path / 'saved' / 'run-000001')
    with pytest.raises(ValueError, match="kind 'checkpoint'"): a_run(tmp_path / 'saved')


@pytest.mark.parametrize('length', [0, 7, 3000])
def test_a_checkpoint_cut_short_is_named_with_the_one_before_it(tmp_path, length):
    folder = tmp_path / 'run'
    learn = lm_learner(lm_data(240, 130), lr=20.)
    learn.fit(2, checkpoint=folder, every='2steps', cbs=Stop(8))
    older,newer = sorted(folder.glob('run-*'))
    newer.write_bytes(newer.read_bytes()[:length])
    again = lm_learner(lm_data(240, 130), lr=20.)
    with pytest.raises(ValueError, match=f'delete it to go on from {older.name}'): again.fit(2, checkpoint=folder)
    assert newer.stat().st_size == length
    newer.unlink()
    again.fit(2, checkpoint=folder)
    whole = lm_learner(lm_data(240, 130), lr=20.)
    whole.fit(2)
    assert_same(snapshot(again.model), snapshot(whole.model))


def test_a_single_bit_that_has_changed_is_noticed(tmp_path):
    a_run(tmp_path / 'run')
    *_,file = sorted((tmp_path / 'run').glob('run-*'))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1                                           # among the values of the last tensor
    file.write_bytes(data)
    with pytest.raises(ValueError, match='the values of .* are not those that were written'): a_run(tmp_path / 'run')
    assert file.read_bytes() == bytes(data)


def test_two_runs_at_once_are_refused(tmp_path):
    def second(learn):
        if learn.iter: return
        with pytest.raises(RuntimeError, match='at work in another process'): a_run(tmp_path / 'run')
    a_run(tmp_path / 'run', Do('before_batch', second), n_epoch=1)


def test_the_last_two_checkpoints_are_kept_and_what_was_half_written_is_cleared(tmp_path):
    seen = []
    learn = lm_learner(lm_data(240, 130), lr=20.)
    look = Do('before_batch', lambda learn: seen.append(len(list((tmp_path / 'run').glob('run-*')))))
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / '.run-000001.safetensors.77.part').write_text('half')
    learn.fit(2, checkpoint=tmp_path / 'run', every='1steps', cbs=look)
    assert max(seen) == 2 and not list((tmp_path / 'run').glob('.run*'))


def test_a_thread_that_may_not_handle_signals_writes_checkpoints_too(tmp_path):
    thread = threading.Thread(target=a_run, args=(tmp_path / 'run',))
    thread.start()
    thread.join()
    assert_same(snapshot(a_run(tmp_path / 'run').model), snapshot(a_run(tmp_path / 'uncut').model))


def test_the_interval_is_stretched_so_that_writing_takes_two_percent(tmp_path, monkeypatch):
    now = [0.]
    monkeypatch.setattr('awdtext.training.resume.time.monotonic', lambda: now[0])
    with RunFolder(tmp_path, {}, '10s') as run:
        now[0] = 9.9
        assert not run.due('steps')
        now[0] = 10.
        assert run.due('steps')
        run.write({})
        run.took = 1.
        now[0] = 59.
        assert not run.due('steps')
        now[0] = 60.
        assert run.due('steps')


def test_an_error_leaves_the_last_checkpoint(tmp_path):
    def fail(learn):
        if learn.epoch == 1: raise ZeroDivisionError
    learn = lm_learner(lm_data(240, 130), lr=20.)
    with pytest.raises(ZeroDivisionError):
        learn.fit(2, checkpoint=tmp_path / 'run', every='1epoch', cbs=Do('before_step', fail))
    again = lm_learner(lm_data(240, 130), lr=20.)
    again.fit(2, checkpoint=tmp_path / 'run')
    whole = lm_learner(lm_data(240, 130), lr=20.)
    whole.fit(2)
    assert_same(snapshot(again.model), snapshot(whole.model))


def test_asgd_from_the_first_step(tmp_path):
    def run(folder, cb=None):
        learn = lm_learner(lm_data(240, 130), averaging=ASGD(start=1), lr=20.)
        learn.fit(2, cbs=cb, checkpoint=folder, every='1000steps')
        return learn
    run(tmp_path / 'run', Stop(4))
    again,uncut = run(tmp_path / 'run'),run(tmp_path / 'uncut')
    assert again.average.n == uncut.average.n
    assert_same(snapshot(again.model), snapshot(uncut.model))
    assert_same(snapshot(again.average.mean), snapshot(uncut.average.mean))
