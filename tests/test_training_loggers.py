"The record as others read it: pandas, TensorBoard's own reader, a notebook that is looked at through its messages."
import builtins
import json
import math
import re
import shutil
import struct
import sys
import time

import pandas as pd
import pytest
from training_helpers import Do, lm_learner, plain_learner, two_classes

from awdtext.training import loggers
from awdtext.training.loggers import CSVLogger, ShowGraph, TensorBoard, WandB
from awdtext.training.metrics import accuracy
from awdtext.training.monitors import EarlyStopping, SaveModel


def as_read(path):
    rows = pd.read_csv(path, dtype=str).to_dict('records')        # python's own float() reads each digit back
    return [{name: int(v) if name == 'epoch' else float(v) for name, v in row.items()} for row in rows]


def scalars(folder):
    "Name -> {step: value}."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder)).Reload()
    seen = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()['scalars']}
    for name, values in seen.items(): assert len(dict(values)) == len(values), f"{name}: a step was written twice"
    return {name: dict(values) for name, values in seen.items()}


# The CSV file

def test_the_file_is_the_record_after_every_epoch(tmp_path):
    learn,lengths = plain_learner(two_classes(), metrics=accuracy, path=tmp_path),[]

    def look(learn):
        assert as_read(tmp_path / 'history.csv') == learn.record
        lengths.append(len(learn.record))
    learn.fit(3, cbs=[CSVLogger(), Do('after_epoch', look, order=99)])
    assert lengths == [1, 2, 3]
    header = (tmp_path / 'history.csv').read_text().splitlines()[0]
    assert header == 'epoch,train_loss,valid_loss,accuracy,items/s,time'
    assert [p.name for p in tmp_path.iterdir()] == ['history.csv']


def test_the_epoch_that_stops_training_is_in_the_file_too(tmp_path):
    learn = plain_learner(two_classes(), path=tmp_path)
    learn.fit(5, cbs=[EarlyStopping(min_delta=9.), CSVLogger('deep/er/log.csv'), SaveModel()])
    assert as_read(tmp_path / 'deep' / 'er' / 'log.csv') == learn.record and len(learn.record) == 2


def test_a_new_run_replaces_the_file_and_append_keeps_it(tmp_path):
    def run(**kwargs):
        learn = plain_learner(two_classes(), path=tmp_path)
        learn.fit(2, cbs=CSVLogger(**kwargs))
        return learn.record
    run()
    first = run()
    assert as_read(tmp_path / 'history.csv') == first
    second = run(append=True)
    assert as_read(tmp_path / 'history.csv') == first + second
    path = tmp_path / 'history.csv'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())   # saved by a spreadsheet
    third = run(append=True)
    assert as_read(tmp_path / 'history.csv') == first + second + third


@pytest.mark.parametrize('content', [
    b'text,label\na film,good\n', b'epoch,loss\n0,1.5\n', b'epoch,train_loss\n0,1.5,2\n', b'epoch,train_loss\n0\n',
    b'epoch,train_loss,time,time\n0,1,2,3\n', b'epoch,train_loss\n0,d\xe9j\xe0 vu\n', b'x\n',
    b'a film, or so\n'], ids=repr)
def test_a_file_that_is_no_record_is_refused_before_training(content, tmp_path):
    (tmp_path / 'history.csv').write_bytes(content)
    learn = plain_learner(two_classes(), path=tmp_path)
    with pytest.raises(ValueError, match=r'history\.csv is no record of training') as e:
        learn.fit(2, cbs=CSVLogger(append=True))
    names = content.decode('latin-1').splitlines()[0].split(',')
    assert 'no CSV of UTF-8 text' in str(e.value) or ', '.join(map(repr, names)) in str(e.value)
    assert learn.record == [] and learn.recorder.losses == []
    assert [p.name for p in tmp_path.iterdir()] == ['history.csv']
    assert (tmp_path / 'history.csv').read_bytes() == content


@pytest.mark.parametrize('content', ['', '\n', 'epoch,train_loss\n', 'epoch,train_loss,my_metric\n\n0,1.5,2.5\n'],
                         ids=repr)
def test_other_records_and_empty_files_are_gone_on_with(content, tmp_path):
    "Of another run with other metrics, for one: what a line lacks is empty."
    (tmp_path / 'history.csv').write_text(content)
    learn = plain_learner(two_classes(), path=tmp_path)
    learn.fit(1, cbs=CSVLogger(append=True))
    *kept,last = as_read(tmp_path / 'history.csv')
    assert {name: last[name] for name in learn.record[0]} == learn.record[0]
    assert [row['my_metric'] for row in kept] == [2.5] * ('2.5' in content)


def test_two_fits_of_one_learner(tmp_path):
    for append in (False, True):
        learn = plain_learner(two_classes(), path=tmp_path, cbs=CSVLogger('a.csv' if append else 'b.csv', append))
        learn.fit(2)
        learn.fit(1)
        assert as_read(learn.path / ('a.csv' if append else 'b.csv')) == learn.record and len(learn.record) == 3


def test_figures_that_only_some_epochs_have(tmp_path):
    learn = plain_learner(two_classes(), path=tmp_path, cbs=CSVLogger())
    valid,learn.dls.valid = learn.dls.valid,None
    learn.fit(1)
    learn.dls.valid = valid
    learn.fit(1)
    rows = as_read(tmp_path / 'history.csv')
    assert math.isnan(rows[0]['valid_loss']) and rows[1]['valid_loss'] == learn.record[1]['valid_loss']


@pytest.mark.parametrize('append', [False, True])
def test_a_killed_run_repeats_and_loses_nothing(append, tmp_path):
    (tmp_path / 'history.csv').write_text('epoch,train_loss\n7,1.5\n')
    dls = two_classes()
    def run(kill):
        def stop(learn):
            if kill and learn.epoch == 2 and learn.training and learn.iter == 3: raise KeyboardInterrupt
        learn = plain_learner(dls, path=tmp_path)
        cbs = [CSVLogger(append=append), Do('before_batch', stop)]
        learn.fit(4, cbs=cbs, checkpoint=tmp_path / 'run', every='1steps')
        return learn
    run(True)
    assert len(as_read(tmp_path / 'history.csv')) == 2 + append
    learn = run(False)
    rows = as_read(tmp_path / 'history.csv')
    assert rows[append:] == learn.record and [row['epoch'] for row in rows] == [7] * append + [0, 1, 2, 3]


def test_a_run_that_is_killed_before_its_first_checkpoint_is_due(tmp_path):
    "Its lines are its own still, and none from before."
    (tmp_path / 'history.csv').write_text('epoch,train_loss\n7,1.5\n')
    dls = two_classes()
    def run(kill):
        def die(learn):
            if kill and learn.epoch == 2: raise ZeroDivisionError
        learn = plain_learner(dls, path=tmp_path)
        learn.fit(4, cbs=[CSVLogger(append=True), Do('before_epoch', die)], checkpoint=tmp_path / 'run', every='9h')
        return learn
    with pytest.raises(ZeroDivisionError): run(True)
    assert [row['epoch'] for row in as_read(tmp_path / 'history.csv')] == [7, 0, 1]
    learn = run(False)
    assert as_read(tmp_path / 'history.csv')[1:] == learn.record
    assert [row['epoch'] for row in as_read(tmp_path / 'history.csv')] == [7, 0, 1, 2, 3]


def test_an_error_leaves_the_whole_epochs_in_the_file(tmp_path):
    def fail(learn):
        if learn.epoch == 1: raise ZeroDivisionError
    learn = plain_learner(two_classes(), path=tmp_path)
    with pytest.raises(ZeroDivisionError): learn.fit(3, cbs=[CSVLogger(), Do('before_batch', fail)])
    assert as_read(tmp_path / 'history.csv') == learn.record


# TensorBoard

@pytest.mark.parametrize('every', [1, 3, 1000])
def test_tensorboard_reads_losses_rates_and_figures(every, tmp_path):
    learn = plain_learner(two_classes(), metrics=accuracy, path=tmp_path)
    learn.fit_one_cycle(2, .1, cbs=TensorBoard(tmp_path / 'tb', every=every))
    seen = scalars(tmp_path / 'tb')
    assert list(seen['step/loss']) == list(range(1, 17))
    assert list(seen['step/loss'].values()) == pytest.approx(learn.recorder.losses)
    assert list(seen['step/lr'].values()) == pytest.approx(learn.recorder.lrs)
    for name in ('train_loss', 'valid_loss', 'accuracy'):
        assert seen[name] == pytest.approx({8: learn.record[0][name], 16: learn.record[1][name]})
    assert 'items_per_s' in seen and 'epoch' not in seen


def test_tensorboard_is_written_while_training_and_closed_after_errors(tmp_path):
    def fail(learn):
        if learn.epoch == 1 and learn.iter == 3:
            assert len(scalars(tmp_path / 'tb')['train_loss']) == 1, "flushed at the end of the epoch"
            raise ZeroDivisionError
    learn,cb = plain_learner(two_classes()),TensorBoard(tmp_path / 'tb')
    with pytest.raises(ZeroDivisionError): learn.fit(2, cbs=[cb, Do('before_batch', fail)])
    assert cb.writer is None and len(scalars(tmp_path / 'tb')['step/loss']) == 11


def test_tensorboard_chooses_a_folder(tmp_path):
    learn = plain_learner(two_classes(), path=tmp_path)
    learn.fit(1, cbs=TensorBoard())
    folder, = (tmp_path / 'runs').iterdir()
    assert scalars(folder)['train_loss']


def test_tensorboard_goes_on_after_a_kill(tmp_path, monkeypatch):
    "In the same folder, at another time; what was written after the checkpoint is replaced."
    dls,times = two_classes(),iter(['runs/first', 'runs/second'])
    monkeypatch.setattr(loggers.time, 'strftime', lambda form: next(times))
    def run(kill):
        def die(learn):
            if kill and learn.epoch == 2 and learn.training and learn.iter == 3: raise ZeroDivisionError
        learn,cb = plain_learner(dls, path=tmp_path),TensorBoard()
        try: learn.fit(4, cbs=[cb, Do('before_batch', die)], checkpoint=tmp_path / 'run', every='5steps')
        except ZeroDivisionError: pass
        return learn,cb
    _,first = run(True)
    learn,second = run(False)
    assert first.folder == second.folder
    seen = scalars(first.folder)
    assert list(seen['step/loss']) == list(range(1, 33))
    assert list(seen['step/loss'].values()) == pytest.approx(learn.recorder.losses)
    assert list(seen['train_loss']) == [8, 16, 24, 32]


@pytest.mark.parametrize('every,n_done', [('5steps', 7), ('1epoch', 11), ('9h', 3)])
@pytest.mark.parametrize('at_once', [3, 1000])
def test_a_kill_leaves_no_hole(every, n_done, at_once, tmp_path):
    "What is on the disk at some moment is all that a killed process leaves: the run goes on from a copy of that."
    dls = two_classes()
    def run(folder, cb=None):
        learn = plain_learner(dls, path=tmp_path)
        cbs = [TensorBoard(folder / 'tb', every=at_once), *([cb] if cb else [])]
        learn.fit(2, cbs=cbs, checkpoint=folder / 'run', every=every)
        return learn
    def kill(learn):
        if len(learn.recorder.lrs) != n_done + 1: return
        shutil.copytree(tmp_path / 'first', tmp_path / 'copy')
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): run(tmp_path / 'first', Do('after_batch', kill, order=-1000))
    for file in (tmp_path / 'copy').glob('tb/*'):             # long ago: the reader goes by the names
        file.rename(file.with_name(re.sub(r'\.\d{10}\.', '.0000000001.', file.name, count=1)))
    shutil.rmtree(tmp_path / 'first')
    (tmp_path / 'copy').rename(tmp_path / 'first')
    learn = run(tmp_path / 'first')
    seen = scalars(tmp_path / 'first/tb')
    assert list(seen['step/loss']) == list(range(1, 17))
    assert list(seen['step/loss'].values()) == pytest.approx(learn.recorder.losses)
    assert list(seen['step/lr'].values()) == pytest.approx(learn.recorder.lrs)
    assert list(seen['train_loss']) == [8, 16]


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__
    def missing(name, *args, **kwargs):
        if name.startswith('torch.utils.tensorboard'): raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'awdtext\[tensorboard\]'"):
        plain_learner(two_classes(), path=tmp_path).fit(1, cbs=TensorBoard())


def test_every_must_be_positive():
    with pytest.raises(ValueError, match='every=0'): TensorBoard(every=0)


# The graph

def test_the_graph_is_one_display_that_is_updated(monkeypatch):
    import IPython.display
    calls = []
    class Handle:
        def update(self, figure): calls.append(('update', figure))
    def display(figure, display_id):
        calls.append(('display', figure))
        return Handle()
    monkeypatch.setattr(IPython.display, 'display', display)
    monkeypatch.setattr(loggers, 'display_mode', lambda: 'notebook')
    learn = plain_learner(two_classes(), cbs=ShowGraph())
    learn.fit(3)
    assert [name for name, _ in calls] == ['display', 'update', 'update']
    lines = {line.get_label(): line for line in calls[-1][1].axes[0].lines}
    assert list(lines['valid'].get_ydata()) == [row['valid_loss'] for row in learn.record]
    learn.fit(1)
    assert calls[-1][0] == 'display', "the next fit has its own"


def test_no_graph_outside_of_notebooks(capsys):
    learn,cb = plain_learner(two_classes()),ShowGraph()
    learn.fit(2, .1, cbs=cb)
    assert cb._shown is None and not capsys.readouterr().out


def test_they_stay_out_of_the_range_test(tmp_path):
    learn = lm_learner(path=tmp_path, cbs=[CSVLogger(), TensorBoard(), ShowGraph()])
    learn.lr_find(num_it=60, show_plot=False)
    assert not list(tmp_path.iterdir())


def test_fastais_names():
    assert loggers.TensorBoardCallback is TensorBoard and loggers.ShowGraphCallback is ShowGraph


# Weights & Biases: the package itself, where it is installed

def wandb_records(data):
    "The records of a `.wandb` file: after seven bytes LevelDB's log format, pieces of records in blocks of 32 KiB."
    record,place = b'', 7
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7: place += left
        else:
            length,kind = struct.unpack_from('<HB', data, place + 4)
            record,place = record + data[place + 7:place + 7 + length], place + 7 + length
            if kind in (1, 4):                                    # whole, or the last piece
                yield record
                record = b''


def read_wandb(folder):
    "Step -> values, of each offline run in `folder`."
    from wandb.proto.wandb_internal_pb2 import Record
    runs = []
    for file in sorted(folder.glob('wandb/offline-run-*/run-*.wandb')):
        histories = [record.history for data in wandb_records(file.read_bytes()) if
                     (record := Record.FromString(data)).HasField('history')]
        rows = [{i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in h.item} for h in histories]
        runs.append({row['_step']: row for row in rows})
    return runs


def test_wandb_offline_holds_every_step_and_the_record(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    for name in ('WANDB_API_KEY', 'WANDB_MODE'): monkeypatch.delenv(name, raising=False)
    learn = plain_learner(two_classes(), path=tmp_path)
    cb = WandB(every=3)
    learn.fit(2, cbs=cb)
    for _ in range(100):                                  # another process writes the file
        (run,) = read_wandb(tmp_path)
        if 16 in run: break
        time.sleep(.1)
    losses = [run[i + 1]['step/loss'] for i in range(16)]
    assert losses == pytest.approx(learn.recorder.losses)
    for step, line in zip((8, 16), learn.record): assert run[step]['valid_loss'] == pytest.approx(line['valid_loss'])
    assert cb.run is None and f'-{cb.id}' in next(tmp_path.glob('wandb/offline-run-*')).name


def test_without_wandb_it_is_said_before_training_begins(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    learn = plain_learner(two_classes())
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'awdtext\[wandb\]'"): learn.fit(1, cbs=WandB())
    assert learn.record == [] and learn.recorder.losses == []


def lines(path): return pd.read_csv(path)['epoch'].tolist()


def test_a_logger_for_each_fit_repeats_no_line(tmp_path):
    "As gradual unfreezing has it: the record is one, the loggers are several."
    learn = plain_learner(two_classes(), path=tmp_path)
    for n in (1, 2): learn.fit(n, .1, cbs=CSVLogger(append=True))
    assert lines(tmp_path / 'history.csv') == [0, 0, 1]


def test_a_loaded_learner_loses_no_line(tmp_path):
    def new(): return plain_learner(two_classes(), path=tmp_path, cbs=CSVLogger(append=True))
    learn = new()
    learn.fit(1, .1)
    learn.save('a')
    learn.fit(2, .1)
    learn = new().load('a')
    learn.fit(1, .1)
    assert lines(tmp_path / 'history.csv') == [0, 0, 1, 0]


def test_a_loaded_learner_logs_to_the_folder_it_is_told(tmp_path):
    pytest.importorskip('tensorboard')
    def new(folder): return plain_learner(two_classes(), path=tmp_path, cbs=TensorBoard(tmp_path / folder))
    learn = new('a')
    learn.fit(1, .1)
    learn.save('m')
    before = sorted((tmp_path / 'a').iterdir())
    learn = new('b').load('m')
    learn.fit(1, .1)
    assert list((tmp_path / 'b').iterdir()) and sorted((tmp_path / 'a').iterdir()) == before
