"The live table where people look at it: a pseudo-terminal, a file, a notebook."
import io
import os
import re
import sys
import threading
import time

import nbclient
import nbformat
import pytest
from training_helpers import Do, lm_learner, plain_learner, two_classes

from awdtext.training.metrics import accuracy
from awdtext.training.progress import ProgressCallback, format_figure
from awdtext.training.rnn import ASGD, NTASGD
from awdtext.core import say
from awdtext.training.tracking import TimeLeft


# A terminal

class Screen:
    "What a terminal shows after it was sent `text`: a carriage return goes back, what comes then writes over."
    def __init__(self, text, columns):
        self.rows,self.column = [[]],0
        for c in text.replace('\r\n', '\n'):
            if c == '\n': self.rows.append([]); self.column = 0
            elif c == '\r': self.column = 0
            else: self.put(c, columns)

    def put(self, c, columns):
        assert self.column < columns, f"a line is longer than the terminal: {''.join(self.rows[-1])!r}"
        self.rows[-1][self.column:self.column + 1] = [c]
        self.column += 1

    @property
    def lines(self): return [''.join(row).rstrip() for row in self.rows]


@pytest.fixture
def terminal(monkeypatch):
    "A function that runs another with a pseudo-terminal as its output, and returns all that was written."
    pty = pytest.importorskip('pty')
    monkeypatch.setenv('COLUMNS', '100')

    def run(func):
        master,slave = pty.openpty()
        seen = []
        def read():
            while True:
                try: data = os.read(master, 4096)
                except OSError: return                              # the other end was closed
                if not data: return
                seen.append(data)
        thread = threading.Thread(target=read)
        thread.start()
        with monkeypatch.context() as m, os.fdopen(slave, 'w', encoding='utf-8') as out:
            m.setattr(sys, 'stdout', out)
            func()
        thread.join(timeout=10)
        os.close(master)
        return b''.join(seen).decode()
    return run


def slowly(seconds=.03): return Do('before_step', lambda learn: time.sleep(seconds))


def assert_table(lines, n_epoch):
    "A header and a line for each epoch, each complete and nothing else in it."
    assert re.fullmatch(r' +epoch +train_loss +valid_loss +accuracy +items/s +time', lines[0])
    assert len(lines) == n_epoch + 1
    for i, line in enumerate(lines[1:]):
        assert re.fullmatch(rf' +{i}( +\d\.\d{{4}}){{3}} +[\d,]+ +\d\d:\d\d', line), line
        assert len(line) == len(lines[0])


def test_terminal_shows_a_bar_that_leaves_nothing_behind(terminal):
    learn = plain_learner(two_classes(), metrics=accuracy, cbs=slowly()).add_cb(ProgressCallback)
    text = terminal(lambda: learn.fit(3, 1e-3))
    assert 'epoch 1/3 train |' in text and 'epoch 3/3 valid |' in text and '█' in text
    assert re.search(r'train \|█+-+\| .*\[\d/8 .* \d\.\d{4}\]', text), "the bar shows the loss"
    *table,rest = Screen(text, 100).lines
    assert_table(table, 3)
    assert rest == ''


def test_terminal_gives_messages_lines_of_their_own(terminal):
    cbs = [slowly(), ASGD(start=11), TimeLeft(0., lambda s: 'Advice.', n_batches=3, min_seconds=0.)]
    learn = plain_learner(two_classes(), lr=3., metrics=accuracy, cbs=cbs).add_cb(ProgressCallback)
    *lines,rest = Screen(terminal(lambda: learn.fit(2, 1e-3)), 100).lines
    messages = [line for line in lines if line.startswith(('Averaging begins', 'This run will take'))]
    assert sorted(m.split()[0] for m in messages) == ['Averaging', 'This']
    told = r'Averaging begins after step \d+\.|This run will take about .*\. Advice\.'
    for m in messages: assert re.fullmatch(told, m)
    assert_table([line for line in lines if line not in messages], 2)
    assert rest == ''


def test_bar_of_the_training_pass_comes_back_after_a_validation_in_its_middle(terminal):
    learn = plain_learner(two_classes(), cbs=[slowly(), NTASGD(n=10**6, every=3)]).add_cb(ProgressCallback)
    text = terminal(lambda: learn.fit(1, 1e-3))
    order = re.sub(r'(.)\1+', r'\1', ''.join(kind[0] for kind in re.findall(r'epoch 1/1 (train|valid) \|', text)))
    assert order.startswith('tvtvt')


def test_terminal_after_ctrl_c(terminal):
    def press(learn):
        if learn.iter == 4 and learn.epoch == 1: raise KeyboardInterrupt
    learn = plain_learner(two_classes(), metrics=accuracy, cbs=[slowly(), Do('after_step', press)])
    text = terminal(lambda: learn.add_cb(ProgressCallback).fit(3, 1e-3))
    *table,told,rest = Screen(text, 100).lines
    assert_table(table, 1)
    assert (told, rest) == ("Interrupted in epoch 1. The model is usable, the record is kept.", '')


def test_cancelled_batches_and_no_validation_data_do_not_disturb_the_bar(terminal):
    from awdtext.training.callback import CancelBatchException, CancelEpochException
    def cancel(learn):
        if learn.epoch == 0 and learn.iter < 3: raise CancelBatchException
        if learn.epoch == 1 and learn.iter == 3: raise CancelEpochException
    dls = two_classes()
    dls.valid = None
    learn = plain_learner(dls, cbs=[slowly(), Do('before_batch', cancel)]).add_cb(ProgressCallback)
    lines = Screen(terminal(lambda: learn.fit(3, 1e-3)), 100).lines
    assert [line.split()[0] for line in lines if line] == ['epoch', '0', '2'] and lines[-1] == ''


def test_outside_of_a_fit_nothing_is_drawn(terminal):
    learn = plain_learner(two_classes()).add_cb(ProgressCallback)
    terminal(lambda: learn.fit(1, 1e-3))
    assert terminal(learn.validate) == ''


# A file

def test_file_gets_lines_without_carriage_returns(tmp_path, monkeypatch):
    learn = plain_learner(two_classes(), metrics=accuracy, lr=3., cbs=ASGD(start=12)).add_cb(ProgressCallback)
    with open(tmp_path / 'log', 'w', encoding='utf-8') as out, monkeypatch.context() as m:
        m.setattr(sys, 'stdout', out)
        learn.fit(2, 1e-3)
        assert len((tmp_path / 'log').read_text().splitlines()) == 4, "at once, even where output is buffered"
    text = (tmp_path / 'log').read_bytes().decode()
    assert '\r' not in text and '█' not in text and '\x1b' not in text
    header,first,message,second = text.splitlines()
    assert_table([header, first, second], 2)
    assert message == "Averaging begins after step 12."


def test_a_second_fit_has_a_header_of_its_own(capsys):
    learn = plain_learner(two_classes()).add_cb(ProgressCallback)
    learn.fit(1, 1e-3)
    learn.fit(1, 1e-3)
    assert capsys.readouterr().out.count('train_loss') == 2


def test_language_models_show_perplexity_and_tokens(capsys):
    lm_learner().add_cb(ProgressCallback).fit(1, 1e-3)
    header,row = capsys.readouterr().out.splitlines()
    assert header.split() == 'epoch train_loss valid_loss perplexity tokens/s time'.split()
    assert len(row.split()) == 6


def test_messages_in_a_file_are_plain(capsys):
    say('One line.')
    assert capsys.readouterr().out == 'One line.\n'


@pytest.mark.parametrize('name,value,text', [
    ('epoch', 3, '3'), ('time', 3725.9, '62:05'), ('tokens/s', 12345.6, '12,346'), ('valid_loss', float('nan'), 'nan'),
    ('perplexity', float('inf'), 'inf'), ('perplexity', 134.567, '134.57'), ('accuracy', .98765, '0.9877')])
def test_figures_as_text(name, value, text): assert format_figure(name, value) == text


# A notebook

cells = ['''
import sys
sys.path.insert(0, %r)
from training_helpers import Do, lm_learner
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import NTASGD
learn = lm_learner(averaging=NTASGD(n=10**6, every=3)).add_cb(ProgressCallback)
''', 'learn.fit(2, 1e-3)', '''
def press(learn):
    if learn.epoch == 1: raise KeyboardInterrupt
learn.fit(3, 1e-3, cbs=Do('after_step', press))
''', 'print(len(learn.validate()))']


@pytest.fixture(scope='module')
def executed():
    "The cells of a notebook that trains, with their outputs."
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_code_cell(c % os.path.dirname(__file__) if '%r' in c else c) for c in cells]
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3').execute()
    return nb.cells


def tables(cell):
    htmls = [o.data.get('text/html', '') for o in cell.outputs if 'data' in o]
    return [html for html in htmls if '<table' in html]


def test_notebook_ends_with_a_table_and_no_bars(executed):
    (table,) = tables(executed[1])
    assert table.count('<tr') == 3 and '<progress' not in table
    for name in ('epoch', 'train_loss', 'valid_loss', 'perplexity', 'tokens/s', 'time'): assert f'>{name}<' in table
    left = [o for o in executed[1].outputs if '<progress' in o.get('data', {}).get('text/html', '')]
    assert not left, "bars that nobody moves any more"
    assert not [o for o in executed[1].outputs if o.output_type in ('stream', 'error')], "nothing is printed beside it"


def test_notebook_keeps_the_table_of_an_interrupted_fit(executed):
    (table,) = tables(executed[2])
    assert table.count('<tr') == 2
    (told,) = [o.text for o in executed[2].outputs if o.output_type == 'stream']
    assert told == "Interrupted in epoch 1. The model is usable, the record is kept.\n"


def test_notebook_draws_nothing_outside_of_a_fit(executed):
    assert [o.output_type for o in executed[3].outputs] == ['stream']
    assert io.StringIO(executed[3].outputs[0].text).read() == '2\n'
