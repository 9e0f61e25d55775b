"The benchmarks of speed: what is counted, what is thrown away, how the tables are computed, and that all of it runs."
import gzip
import json
import random
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from awdtext.models.awd_lstm import AWDLSTMConfig
from awdtext.models.language_model import get_language_model

folder = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def load(monkeypatch):
    "Import a benchmark as a module."
    monkeypatch.syspath_prepend(str(folder))
    return import_module


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A folder laid out as the real one, of made-up text."
    rng,path = random.Random(0), tmp_path_factory.mktemp('data')
    words = [f'w{i}' for i in range(300)]
    (path / 'wikitext-2').mkdir()
    (path / 'imdb').mkdir()
    for part in ('train', 'valid'):
        lines = (' '.join(rng.choices(words + ['<unk>'], k=12)) for _ in range(200))
        (path / f'wikitext-2/{part}.txt').write_text('\n'.join(lines) + '\n')
    texts = [' '.join(rng.choices(words, k=rng.randint(30, 90))) for _ in range(80)]
    labelled = [f"{text},{('neg', 'pos')[i % 2]}" for i, text in enumerate(texts)]
    for name, head, lines in (('train', 'text,label', labelled), ('unsup', 'text', texts)):
        with gzip.open(path / f'imdb/{name}.csv.gz', 'wt') as f: f.write('\n'.join([head, *lines]) + '\n')
    return path


def cells(report):
    return [[c.strip() for c in line.strip('|').split('|')] for line in report.splitlines() if line.startswith('|')]


# What is counted

@pytest.mark.parametrize('name, mflop', [('wt2', 201.0), ('ptb', 145.1), ('small', 44.6)])
def test_operations_are_three_times_those_of_a_forward_pass(load, name, mflop):
    limits = load('limits')
    m = limits.models[name]
    counted = limits.operations(limits.model_products(**m)) / (m['bs'] * m['bptt'])
    config = AWDLSTMConfig(**dict(zip(('emb_sz', 'n_hid', 'n_layers'), m['sizes'])))
    assert counted == 6 * config.macs_per_token(m['vocab'])
    assert counted / 1e6 == pytest.approx(mflop, abs=.05)
    forward = limits.operations(limits.model_products(**m, train=False)) / (m['bs'] * m['bptt'])
    assert forward * 3 == counted


def test_torchs_own_counter_finds_the_same_operations_in_a_decoder(load):
    limits = load('limits')
    hidden,weight = torch.randn(6, 4, requires_grad=True), torch.randn(10, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter: (hidden @ weight.T).sum().backward()
    assert limits.operations(limits.decoder_products(10, 4, 6)) == counter.get_total_flops()


def test_bytes_are_those_of_the_three_matrices(load):
    limits = load('limits')
    p = limits.Product('', 7, 2, 3, 5)
    assert limits.n_bytes(p) == 7 * sum(torch.zeros(shape).nbytes for shape in ((2, 3), (3, 5), (2, 5)))
    assert limits.limit_seconds([p, p], {(2, 3, 5): .5}) == 7.


@pytest.mark.parametrize('dtype, tol', [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_each_way_to_multiply_is_right(load, dtype, tol, monkeypatch):
    limits = load('limits')
    x,weight = torch.randn(40, 30).to(dtype), torch.randn(20, 30).to(dtype)
    expected = (x.double() @ weight.double().T).to(dtype)
    results = {}
    def note(f, seconds): results[len(results)] = f()
    monkeypatch.setattr(limits, '_timed', note)
    for f in limits.ways(x, weight).values():
        out = f()
        out = torch.cat(list(out)) if isinstance(out, list) else out
        torch.testing.assert_close(out, expected, rtol=tol, atol=tol * 10)


# What is thrown away

class FakeWorker:
    "Says how long it took, and how much others took: a list, sample by sample."
    def __init__(self, others): self.others,self.asked = list(others), []


def test_disturbed_samples_are_repeated_and_counted(load, monkeypatch):
    m = load('_measure')
    order = []
    def sample(worker, i):
        order.append((worker, i))
        return {'seconds': len(order), 'others': worker.others.pop(0)}
    monkeypatch.setattr(m, 'sample', sample)
    monkeypatch.setattr(m.time, 'sleep', lambda s: None)
    a,b = FakeWorker([9, 0, .5, .05, 0]), FakeWorker([0, 0, 0, 0])
    kept,thrown = m.rounds({'a': a, 'b': b}, 3, quiet=.1)
    assert thrown == {'a': 1, 'b': 0} and not a.others and not b.others
    assert [who is a for who, _ in order] == [True, False, True, False, False, True, True, True, False]
    assert [got['others'] for got in kept['a']] == [0, .05, 0]
    order.clear()
    a,b = FakeWorker([0] * 6), FakeWorker([0] * 3)
    kept,_ = m.rounds({'a': a, 'b': b}, 2, ahead=1, seldom=('b',))
    assert [who is a for who, _ in order] == [True, True, True, False, False, True, True]
    assert [len(kept[name]) for name in 'ab'] == [2, 2] and [got['seconds'] for got in kept['a']] == [3, 7]
    loud = FakeWorker([0, 1, 1, 1, 1, 1])
    kept,thrown = m.rounds({'a': loud}, 2, quiet=.1, patience=3)
    assert thrown == {'a': 3} and [got['others'] for got in kept['a']] == [1, 1]


@pytest.mark.skipif(not Path('/proc/stat').exists(), reason='/proc/stat is needed')
def test_work_of_the_worker_is_its_own(load, tmp_path):
    m = load('_measure')
    script = tmp_path / 'worker.py'
    script.write_text(f'''
import sys, time
sys.path.insert(0, {str(folder)!r})
from _serve import MissingError, serve
def spin(settings):
    print('this is no answer')
    def sample(i):
        until = time.process_time() + .3
        while time.process_time() < until: pass
        return i
    return sample, {{'fact': settings}}
def absent(settings): raise MissingError('not here')
serve({{'spin': spin, 'absent': absent}})
''')
    worker = m.Worker([sys.executable, script], threads=1)
    try:
        assert worker.ask(task='absent', settings={}) == {'missing': 'not here'}
        assert worker.ask(task='spin', settings=3) == {'fact': 3}
        before = m.tree_seconds(worker.process.pid)
        got = m.sample(worker, 4)
        assert got['amount'] == 4 and got['cpu_seconds'] >= .3 and got['peak_mb'] > 5 and got['others'] >= 0
        assert .25 <= m.tree_seconds(worker.process.pid) - before <= 1.
        with pytest.raises(m.FailedError, match='KeyError'): worker.ask(task='unknown', settings={})
    finally: worker.close()


def test_texts_are_read_by_fresh_processes(load, monkeypatch):
    s = load('speed')
    loudness = iter([0, .5, 0, 0])
    calls = []
    def collect(args, name, n, patience, warm, first):
        calls.append((n, patience, warm, first))
        return {'awdtext fp32': [{'others': next(loudness), 'amount': first}]}, {}, {}
    monkeypatch.setattr(s, 'collect', collect)
    kept,thrown,_ = s.fresh(SimpleNamespace(rounds=3, quiet=.1, patience=20), 'from_df')
    assert calls == [(1, 0, 0, i) for i in (0, 1, 1, 2)] and thrown == {'awdtext fp32': 1}
    assert [got['amount'] for got in kept['awdtext fp32']] == [0, 1, 2]


# The tables

def result(row, **figures):
    return {'row': row, 'quick': False, 'rounds': 3, 'quiet': .1, 'others': {'a': [.02]}, 'thrown': {'a': 2},
            'machine': 'M', 'limit': {'fp32': 400., 'bf16': 800.},
            'figures': {k.replace('_', ' '): v for k, v in figures.items()}}


def test_ratios_goals_and_fractions(load):
    s = load('speed')
    found = cells(s.report([result('wt2', awdtext_fp32=[1, 2, 3]),         # the latest counts
                            result('wt2', awdtext_fp32=[290., 300., 310.], awdtext_bf16=[500., 500., 560.],
                                   fastai_fp32=[200., 200., 190.], fastai_bf16=[250.]),
                            result('predict', awdtext_fp32=[50.], awdtext_bf16=[40.], fastai_fp32=[100.])]))[2:]
    assert found[0][2:] == ['fp32', '200 (190-200)', '250 (250-250); ratio 1.20', '-', '300 (290-310)',
                            '1.50 (1.45-1.63)', '>= 1.5', 'yes', '75%']
    assert found[1][6:] == ['500 (500-560)', '2.50 (2.50-2.95)', '>= 3', 'no', '62%']
    assert found[2][6:] == ['50 (50-50)', '0.50 (0.50-0.50)', '<= 0.4', 'no', '800%']     # less is better
    assert found[4][2:] == ['int8', '100 (100-100)', '-', '-', '-', '-', '0.15', 'not measured', '-']
    imports = result('import', awdtext_fp32=[2.4], torch=[2.], fastai_fp32=[5.]) | {'limit': {}}
    assert cells(s.report([imports]))[2][6:] == ['2.4 (2.4-2.4)', 'torch +0.40 s', '<= torch +0.5 s', 'yes', '-']
    assert 'wt2: 2 disturbed samples repeated' in s.report([result('wt2', awdtext_fp32=[1.])])
    assert '**disturbed**' in s.report([result('wt2', awdtext_fp32=[1.]) | {'others': {'a': [0., .5]}}])


def test_growth_says_what_has_grown(load):
    g = load('growth')
    r = {'axis': 'bs', 'operations': [1, 2, 4], 'seconds': {'awdtext': [1., 2., 4.2]}, 'limit': [.5, 1., 2.]}
    assert g.why(r) == 'no worse than the operations'
    r['seconds'] = {'awdtext': [1., 2., 6.]}
    assert g.why(r) == ('1.50 times worse: products 1.00 times slower at these shapes; the work beside them went from '
                        '50% to 67% of the time')
    r['limit'] = None
    assert g.why(r) == '1.50 times worse; no products here'


def test_curves_and_pairs(load, tmp_path):
    q = load('quality_bf16')
    args = q.parse(['--quick', '--seeds', '0', '1', '--results', str(tmp_path / 'r.jsonl'),
                    '--defaults', str(tmp_path / 'd.jsonl')])
    shift = {'loop': 0., 'fp32': .25, 'nudged': .5, 'bf16': 1.}
    lines = [{'part': 'curves', 'variant': v, 'seed': s, 'steps': 4, 'losses': [1. + s + shift[v]] * 4}
             for v in q.variants for s in (0, 1)]
    (tmp_path / 'r.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    report = q.curves_report(args)
    assert [row[1:] for row in cells(report)[2:]] == [['0.25', '1.7500'], ['0', '1.5000'], ['0.5', '2.0000'],
                                                      ['1', '2.5000']]
    assert 'differs by +0.7500' in report and 'differ by 0.7071' in report
    runs = [{'name': q.candidate, 'n_epoch': 1, 'seed': s, 'precision': p, 'perplexity': [v]}
            for s, p, v in ((0, 'fp32', 100.), (0, 'bf16', 101.), (1, 'fp32', 200.), (1, 'bf16', 198.))]
    (tmp_path / 'd.jsonl').write_text('\n'.join(map(json.dumps, runs)))
    assert [row[-1] for row in cells(q.training_report(args))[2:]] == [
        '+1.00 %', '-1.00 %', '+0.00 ± 1.00 % (standard error); goal: within 0.5 %']


# All of it

def test_the_loop_is_the_layer(load):
    q = load('quality_bf16')
    config = {'emb_sz': 8, 'n_hid': 12, 'n_layers': 2}
    def losses(change):
        torch.manual_seed(0)
        model = get_language_model(30, config).train()
        if change: q.by_the_book(model)
        torch.manual_seed(1)
        ids = torch.randint(30, (3, 9))
        out = model(ids[:, :-1])
        loss = model.loss(out.dropped, ids[:, 1:])
        loss.backward()
        return [loss, *(p.grad for p in model.parameters())]
    torch.testing.assert_close(losses(True), losses(False))


def test_curves_of_two_variants_part_only_by_noise(load, data, tmp_path):
    q = load('quality_bf16')
    args = q.parse(['--data', str(data), '--quick', '--results', str(tmp_path / 'r.jsonl')])
    args.steps = 12
    kernel,loop,nudged = (torch.tensor(q.curve(args, v, 0)) for v in ('fp32', 'loop', 'nudged'))
    assert len(kernel) == 12 and (kernel - loop).abs().max() < 1e-5 and (nudged - loop).abs().max() < 1e-5
    assert not torch.equal(loop, torch.tensor(q.curve(args, 'loop', 1)))


tasks = ['ptb', 'evaluate', 'frozen', 'get_preds', 'batches']


@pytest.mark.parametrize('name', tasks)
def test_our_half_does_what_it_is_asked(load, data, name, tmp_path, monkeypatch):
    s,ours = load('speed'), load('_speed_awdtext')
    args = s.parse(['--data', str(data), '--quick'])
    task,settings,arrays,products = s.makers[name](args, name)
    torch.save(arrays, tmp_path / 'given.pt')
    given = {**settings, 'file': str(tmp_path / 'given.pt'), 'threads': torch.get_num_threads(), 'precision': 'fp32'}
    sample,facts = getattr(ours, task)(given)
    n_windows = 1  # of 64 rows of 72: the text has less than 4,608 tokens
    expected = {'ptb': 8 * 4 * 10, 'evaluate': 2 * 4 * 10, 'frozen': 8, 'get_preds': 8, 'batches': n_windows}
    assert sample(0) == expected[name]
    if products: assert set(ours.limit({**given, 'products': products, 'seconds': 0.})[0](0)) >= {'fp32'}
    if name == 'ptb':
        x = arrays['ids'][:-1].view(4, -1)[:, :10].long()
        assert facts['batch'] == ours.fingerprint(x)


def test_without_fastai_or_data_one_line_says_so(load, data, monkeypatch, tmp_path):
    monkeypatch.delenv('AWDTEXT_FASTAI_PYTHON', raising=False)
    s = load('speed')
    with pytest.raises(SystemExit, match='fastai is missing: give --fastai-python'): s.main(['--data', str(data)])
    for script, file in (('speed', 'wikitext-2/train.txt'), ('growth', 'wikitext-2/train.txt')):
        with pytest.raises(SystemExit, match=f'There is no .*{file}'): load(script).main(['--data', str(tmp_path)])


def test_a_checkout_of_awd_lstm_lm_is_used_as_it_is(load, tmp_path):
    "A stand-in with its names and signatures."
    (tmp_path / 'utils.py').write_text('def repackage_hidden(h): return [tuple(v.detach() for v in l) for l in h]\n')
    (tmp_path / 'splitcross.py').write_text('''
import torch
class SplitCrossEntropyLoss(torch.nn.Module):
    def __init__(self, hidden_size, splits, verbose=False): super().__init__()
    def forward(self, weight, bias, hiddens, targets):
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hiddens, weight, bias), targets)
''')
    (tmp_path / 'model.py').write_text('''
import torch
class RNNModel(torch.nn.Module):
    def __init__(self, rnn_type, ntoken, ninp, nhid, nlayers, dropout=0.5, dropouth=0.5, dropouti=0.5, dropoute=0.1,
                 wdrop=0, tie_weights=False):
        super().__init__()
        self.encoder,self.decoder = torch.nn.Embedding(ntoken, ninp), torch.nn.Linear(ninp, ntoken)
        self.rnn = torch.nn.LSTM(ninp, ninp)
        self.decoder.weight = self.encoder.weight
    def init_hidden(self, bsz): return [tuple(torch.zeros(1, bsz, self.rnn.hidden_size) for _ in range(2))]
    def forward(self, input, hidden, return_h=False):
        out,h = self.rnn(self.encoder(input), hidden[0])
        return out.view(-1, out.size(2)), [h], [out], [out]
''')
    m,s = load('_measure'), load('speed')
    arrays = {'ids': torch.arange(4 * 20 + 1) % 50, 'words': list(range(50))}
    torch.save(arrays, tmp_path / 'given.pt')
    worker = m.Worker([sys.executable, folder / '_speed_awd_lstm_lm.py', tmp_path], threads=1)
    try:
        given = {'file': str(tmp_path / 'given.pt'), 'threads': 1, 'bs': 4, 'bptt': 10, 'sizes': [8, 12, 2], 'lr': 1.}
        facts = worker.ask(task='train', settings={**given, 'dropouts': s.paper})
        assert facts['batch'] == load('_speed_awdtext').fingerprint(arrays['ids'][:80].view(4, 20)[:, :10])
        assert worker.ask(sample=0)['amount'] == 80
    finally: worker.close()


def test_what_is_not_the_same_is_said(load, capsys):
    s = load('speed')
    s.check_same('wt2', 'batch', {'a': {'batch': 1}, 'b': {'batch': 1}, 'limit': {}})
    assert capsys.readouterr().err == ''
    s.check_same('wt2', 'batch', {'a': {'batch': 1}, 'b': {'batch': 2}})
    assert 'wt2: NOT THE SAME batch' in capsys.readouterr().err
    assert s.figure('predict', {'seconds': 2., 'amount': 10, 'peak_mb': 5.}) == 200.
    assert s.figure('memory', {'seconds': 2., 'amount': 10, 'peak_mb': 5.}) == 5.
    assert s.figure('wt2', {'seconds': 2., 'amount': 10, 'peak_mb': 5.}) == 5.
    args = SimpleNamespace(fastai_python=None, awd_lstm_lm=None)
    assert list(s.columns(args, 'from_df')) == ['awdtext fp32']
