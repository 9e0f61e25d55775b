"Ctrl-C: once ends training after the batch at hand, twice at once; the model is usable, the record kept."
import os
import signal
import subprocess
import sys
import threading

import pytest
from training_helpers import Do, Iterates, assert_same, lm_learner, mean_of, plain_learner, snapshot, two_classes

from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import ASGD, NTASGD

needs_posix = pytest.mark.skipif(os.name != 'posix', reason="sends signals as POSIX does")


def press(times=1):
    for _ in range(times): signal.raise_signal(signal.SIGINT)


def at(when, training=True, times=1):
    "Presses Ctrl-C where `when` of (epoch, iter) is."
    def act(learn):
        if learn.training is training and (learn.epoch, learn.iter) == when: press(times)
    return act


def test_first_press_ends_training_after_the_batch_at_hand():
    handler = signal.getsignal(signal.SIGINT)
    learn,seen,raw = plain_learner(two_classes()),Iterates(),Iterates()
    learn.fit(5, cbs=[seen, Do('before_batch', at((1, 3)))])
    assert learn.interrupted and len(learn.record) == 1
    assert len(seen.seen) == 8 + 4 == len(learn.recorder.losses), "that batch is finished"
    assert signal.getsignal(signal.SIGINT) is handler and not learn.model.training

    uncut = plain_learner(learn.dls)
    uncut.fit(2, cbs=raw)
    assert_same(snapshot(learn.model), raw.seen[11])
    learn.fit(1)                                        # on it goes
    assert not learn.interrupted and len(learn.record) == 2


def test_second_press_ends_it_at_once():
    handler = signal.getsignal(signal.SIGINT)
    learn,seen = plain_learner(two_classes()),Iterates()
    learn.fit(5, cbs=[seen, Do('before_batch', at((1, 3), times=2))])
    assert learn.interrupted and len(seen.seen) == 8 + 3, "that batch is not finished"
    assert signal.getsignal(signal.SIGINT) is handler
    learn.fit(1)
    assert len(seen.seen) == 11 and not learn.interrupted and len(learn.record) == 2


@pytest.mark.parametrize('every', [None, 3])
def test_press_in_the_middle_of_a_validation(every):
    learn = lm_learner(averaging=NTASGD(n=10**6, every=every))
    states = []
    look = Do('after_fit', lambda learn: states.append(learn.iter))
    learn.fit(2, cbs=[look, Do('before_batch', at((0, 2), training=False))])
    assert learn.interrupted and learn.record == [] and not learn.model.training
    assert states == [2 if every else learn.n_iter - 1], "the loop's variables are those of training"
    learn.fit(1)
    assert len(learn.record) == 1


def test_the_mean_is_shown_after_an_interruption():
    for when, training in (((1, 2), True), ((1, 1), False)):
        learn,seen = lm_learner(averaging=ASGD(start=2)),Iterates()
        learn.fit(4, cbs=[seen, Do('before_batch', at(when, training))])
        assert learn.interrupted and learn.average.swapped
        mean = mean_of(seen.seen[1:])
        for k, v in snapshot(learn.model).items(): assert (v - mean[k]).abs().max() < 1e-5


def test_who_ignores_or_handles_signals_himself_goes_on_doing_so():
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)     # as for a run in the background
        learn = plain_learner(two_classes())
        learn.fit(2, cbs=Do('before_batch', at((0, 3))))
        assert not learn.interrupted and len(learn.record) == 2
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

        calls = []
        mine = lambda *args: calls.append(args)
        signal.signal(signal.SIGINT, mine)
        learn.fit(1)
        assert signal.getsignal(signal.SIGINT) is mine
        press()
        assert len(calls) == 1
    finally: signal.signal(signal.SIGINT, before)


def test_handler_is_restored_after_an_error():
    def fail(learn): raise ZeroDivisionError
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError): plain_learner(two_classes()).fit(1, cbs=Do('after_step', fail))
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_can_train():
    learn = plain_learner(two_classes())
    thread = threading.Thread(target=learn.fit, args=(2,))
    thread.start()
    thread.join()
    assert len(learn.record) == 2


def test_the_user_is_told(capsys):
    learn = plain_learner(two_classes()).add_cb(ProgressCallback)
    learn.fit(5, .1, cbs=Do('before_batch', at((1, 3))))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Interrupted in epoch 1. The model is usable, the record is kept."
    assert len(lines) == 3                                # header, epoch 0, this


script = '''
import time
from training_helpers import Do, lm_learner
from awdtext.training.progress import ProgressCallback
learn = lm_learner().add_cb(ProgressCallback)
learn.fit(10**6, 5e-3, cbs=Do('after_batch', lambda learn: time.sleep(.01)))
print('usable', learn.interrupted, len(learn.record) > 0, learn.validate()[0] < 4, learn.predict('w1 w2', 3) != '')
'''


@needs_posix
def test_a_real_signal_ends_a_real_process_cleanly():
    tests = os.path.dirname(__file__)
    run = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           cwd=tests, env={**os.environ, 'PYTHONPATH': tests, 'OMP_NUM_THREADS': '1'})
    try:
        lines = [run.stdout.readline() for _ in range(3)]                # the header and two epochs
        assert 'train_loss' in lines[0], lines
        run.send_signal(signal.SIGINT)
        out,err = run.communicate(timeout=60)
    finally: run.kill()
    assert run.returncode == 0, err
    *_,told,last = out.splitlines()
    assert told.startswith("Interrupted in epoch ") and last == 'usable True True True True'
    assert err == ''
