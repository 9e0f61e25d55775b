"The quality benchmarks run end to end on a made-up folder, go on where they were, and compute their tables rightly."
import gzip
import json
import random
import shutil
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import Tokenizer
from awdtext.text_learner import language_model_learner
from awdtext.training.checkpoint import read_bundle
from awdtext.ulmfit import ULMFiTSettings

folder = Path(__file__).parents[1] / 'benchmarks'
good,bad = 'great lovely superb moving'.split(), 'dull awful boring wooden'.split()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A folder laid out as the real one, of made-up text."
    rng,path = random.Random(0), tmp_path_factory.mktemp('data')
    words = [f'w{i}' for i in range(60)]
    (path / 'wikitext-2').mkdir()
    (path / 'imdb').mkdir()
    for part, n in (('train', 150), ('valid', 30), ('test', 30)):
        lines = (' '.join(rng.choices(words + ['<unk>'], k=12)) for _ in range(n))
        (path / f'wikitext-2/{part}.txt').write_text('\n'.join(lines) + '\n')
    def review(kind): return ' '.join(rng.choices(words, k=8) + rng.choices(kind, k=4)) + '<br />The end.'
    (path / 'trec').mkdir()
    for part, n in (('train', 60), ('test', 16)):
        lines = (f"{' '.join(rng.choices(words, k=4) + rng.choices(kind, k=3))} ?,{label}"
                 for _ in range(n) for label, kind in (('NUM', bad), ('HUM', good)))
        (path / f'trec/{part}.csv').write_text('\n'.join(['text,label', *lines]) + '\n')
    labelled = [f'{review(kind)},{label}' for label, kind in (('neg', bad), ('pos', good)) for _ in range(60)]
    unsup = [review(rng.choice((good, bad))) for _ in range(150)]
    for name, head, lines in (('train', 'text,label', labelled), ('unsup', 'text', unsup)):
        with gzip.open(path / f'imdb/{name}.csv.gz', 'wt') as f: f.write('\n'.join([head, *lines]) + '\n')
    return path


@pytest.fixture
def load(monkeypatch):
    "Import a benchmark as a module."
    monkeypatch.syspath_prepend(str(folder))
    return import_module


@pytest.fixture
def run(load, capsys):
    "Call a benchmark as the shell does, and return what it prints."
    def call(script, *args):
        load(script).main([str(a) for a in args])
        return capsys.readouterr().out
    return call


def cells(report):
    return [[c.strip() for c in line.strip('|').split('|')] for line in report.splitlines() if '|' in line]


small_lm = ['--tokens', 1500, '--sizes', 8, 10, 2, '--bs', 4, '--bptt', 20]


def test_language_models_train_once_and_are_told_again_from_the_file(data, tmp_path, run):
    files = ['--results', tmp_path / 'r.jsonl', '--work', tmp_path / 'work']
    args = ['--data', data, '--only', 'awdtext', 'defaults', '--seeds', 0, 1, *small_lm, *files]
    first = run('quality_lm', *args)
    lines = (tmp_path / 'r.jsonl').read_text()
    names = [(r['name'], r['seed']) for r in map(json.loads, lines.splitlines())]
    assert names == [('awdtext', 0), ('awdtext', 1), ('defaults', 0)]
    second = run('quality_lm', *args)
    assert second.strip() in first and 'train_loss' not in second
    assert (tmp_path / 'r.jsonl').read_text() == lines
    rows = cells(second)
    assert [row[:2] for row in rows[2:]] == [
        ['awdtext, 1 epoch', '2'], ['fastai 2.8.12, 1 epoch', '0'], ['awdtext, `fit(3)`', '1']]
    run('quality_lm', *args, '--fresh', '--only', 'defaults')
    assert len((tmp_path / 'r.jsonl').read_text().splitlines()) == 4


def test_weights_of_a_stopped_command_are_not_trained_again(data, tmp_path, run):
    args = ['--data', data, '--only', 'awdtext', '--seeds', 0, *small_lm, '--work', tmp_path / 'work']
    run('quality_lm', *args, '--results', tmp_path / 'r.jsonl')
    assert not list((tmp_path / 'work').iterdir())                     # what is measured needs no weights
    weights = tmp_path / 'work/awdtext-0-1500-4-20-1-0.005-8-10-2.pt'
    weights.touch()                                                    # reading it fails, training would not
    with pytest.raises(EOFError): run('quality_lm', *args, '--results', tmp_path / 'other.jsonl')


small_classifier = ['--lm-minutes', .004, '--draws', 2, '--labels', 40, '--held-out', 30, '--sizes', 6, 8, 2, '--bs', 4,
                    '--steps', 1, '--pseudo-labels', 0]


def linear_by_hand(load, data, work, result):
    "Logistic regression on the means of all layers, of a learner that has the encoder."
    from sklearn.linear_model import LogisticRegression
    train,valid = load('quality_classifier').labelled(data, result['draw'], 40, 30)
    (encoder,) = work.glob('*.safetensors')
    bundle = read_bundle(encoder, 'encoder')
    dls = TextDataLoaders.from_texts(train['text'].tolist(), is_lm=True, text_vocab=bundle['vocab'], bs=2,
                                     tok_tfm=Tokenizer.from_dict(bundle['tokenizer']))
    learn = language_model_learner(dls, pretrained=encoder.resolve())
    x,unseen = (learn.encode(df['text'].tolist(), layers='all').astype(float) for df in (train, valid))
    x,unseen = (x - x.mean(0)) / x.std(0), (unseen - x.mean(0)) / x.std(0)
    return LogisticRegression(C=.01, max_iter=1000).fit(x, train['label']).score(unseen, valid['label'])


def test_classifier_is_told_draw_by_draw_beside_its_peer(data, tmp_path, run, load):
    pytest.importorskip('sklearn')
    args = ['--data', data, *small_classifier, '--precision', 'fp32', '--results', tmp_path / 'r.jsonl',
            '--work', tmp_path / 'work']
    first = run('quality_classifier', *args)
    results = [json.loads(line) for line in (tmp_path / 'r.jsonl').read_text().splitlines()]
    assert [r['part'] for r in results] == ['language model', 'draw', 'draw']
    assert all(r['tfidf'] > .9 for r in results[1:])                   # two classes that share no telling word
    assert [row[0] for row in cells(first)] == ['accuracy on 30 reviews', '---', 'draw 1', 'draw 2', 'mean']
    second = run('quality_classifier', *args)
    assert second.strip() == first[first.index('Language model:'):].strip()
    by_hand = [linear_by_hand(load, data, tmp_path / 'work', r) for r in results[1:]]
    assert [r['linear'] for r in results[1:]] == pytest.approx(by_hand, abs=.5 / 30)
    shutil.rmtree(tmp_path / 'work')                                   # another language model, so other draws too
    third = run('quality_classifier', *args, '--draws', 0)
    assert len((tmp_path / 'r.jsonl').read_text().splitlines()) == 4
    assert 'Language model:' in third and 'draw 1' not in third


def test_second_classifier_of_a_draw_learns_from_the_first(data, tmp_path, run, load, monkeypatch):
    pytest.importorskip('sklearn')
    q,trained = load('quality_classifier'), []
    train = q.classifier
    def spy(docs, valid, *args, **how):
        trained.append((set(docs['text']), len(docs), set(valid['text'])))
        return train(docs, valid, *args, **how)
    monkeypatch.setattr(q, 'classifier', spy)
    said = run('quality_classifier', '--data', data, *small_classifier, '--draws', 1, '--pseudo-labels', 60,
               '--results', tmp_path / 'r.jsonl', '--work', tmp_path / 'work')
    _,draw = (json.loads(line) for line in (tmp_path / 'r.jsonl').read_text().splitlines())
    assert cells(said)[-4][4:6] == ['fine-tuned with pseudo-labels', 'mean of that and the probe']
    names = 'accuracy', 'linear', 'mean', 'second', 'second_mean', 'tfidf', 'tfidf_second'
    assert cells(said)[-1][1:8] == [f'{draw[name]:.3f}' for name in names]
    (first, n, unseen),(both, n_both, _) = trained
    assert n == 40 and first < both and not unseen & both and n_both - 40 == len(both) - len(first)


def test_what_ulmfit_does_untold_is_what_the_presets_table_says(load):
    "Vocabulary and sizes of the cell that learned most; and the README shows the rows that the results file gives."
    p = load('presets')
    results = p.read_results(p.results_file)
    means = {name: mean(r['accuracy'] for r in results if r['cell'] == name and 'accuracy' in r) for name in p.cells}
    sizes,max_vocab,tokens = p.cells[max(means, key=means.get)]
    assert ULMFiTSettings().max_vocab == max_vocab and tuple(sizes) in ULMFiTSettings().sizes and tokens == 'words'
    readme = (folder.parent / 'README.md').read_text().replace('**', '')
    rows = p.report(results, p.parse(['--data', '.'])).splitlines()[2:]
    assert len(rows) == len(p.cells) and all(row in readme for row in rows)


def test_presets_share_their_cells_and_judge_on_reviews_of_their_own(data, tmp_path, run, load, monkeypatch):
    p,judged = load('presets'), []
    monkeypatch.setattr(p, 'cells', {'words': ([6, 8, 2], 100, 'words'), 'pieces': ([6, 8, 2], 300, 'subwords')})
    accuracy = p.q.classifier_accuracy
    def spy(train, valid, *args, **kwargs):
        judged.append((set(train.index), set(valid.index)))
        return accuracy(train, valid, *args, **kwargs)
    monkeypatch.setattr(p.q, 'classifier_accuracy', spy)
    more = json.dumps(['--bs', '4', '--steps', '1'])
    args = ['--data', data, '--minutes', .004, '--draws', 2, '--labels', 30, '--unseen', 20, '--more', more,
            '--results', tmp_path / 'r.jsonl', '--work', tmp_path / 'work']
    planned = run('presets', *args, '--plan')
    assert [line.split(':')[0] for line in planned.splitlines() if 'tokens a second' in line] == ['words', 'pieces']
    assert not (tmp_path / 'r.jsonl').exists()
    monkeypatch.setattr(p.q, 'affordable', lambda *args: pytest.fail("what was planned is measured again"))
    assert [row[0] for row in cells(run('presets', *args, '--shard', '2/2'))][-1:] == ['pieces']
    rows = cells(run('presets', *args))
    assert [row[0] for row in rows[-2:]] == ['words', 'pieces'] and float(rows[-1][5]) == 0       # no piece is unknown
    assert cells(run('presets', *args)) == rows[-4:] and len(judged) == 4
    quality = set(p.q.labelled(data, 0, 30, 20)[1].index)                          # what quality_classifier.py looks at
    for train,valid in judged: assert len(valid) == 20 and not quality & (valid | train) and not train & valid


def test_rates_are_compared_seed_by_seed(data, tmp_path, run):
    args = ['--data', data, '--only', '32 rows, constant', '16 rows', '--seeds', 0, 1, '--amounts', '130x1', '20x2',
            '--sizes', 6, 8, 2, '--max-vocab', 100, '--held-out', 20, '--results', tmp_path / 'r.jsonl']
    first = run('rates', *args)
    results = [json.loads(line) for line in (tmp_path / 'r.jsonl').read_text().splitlines()]
    assert [(r['seed'], r['n_epoch'], r['bs']) for r in results] == [
        (seed, n, bs) for seed in (0, 1) for n in (1, 2) for bs in (32, 16)]
    rows = cells(first)[-2:]
    assert [row[0] for row in rows] == ['32 rows, constant 5e-3', '16 rows, one cycle up to 1e-2']
    values = [r['perplexity'] for r in results if (r['bs'], r['n_epoch']) == (16, 2)]
    assert rows[1][3] == f'{mean(values):.1f} ± {stdev(values):.1f}' and len({r['perplexity'] for r in results}) == 8
    assert cells(run('rates', *args)) == cells(first)[-4:]


def test_ulmfit_prints_its_card_and_what_it_needed(data, tmp_path, run):
    out = run('ulmfit_imdb', '--data', data, '--minutes', .02, '--n-labelled', 40, '--n-texts', 60, '--n-unseen', 20,
              '--work', tmp_path / 'run', '--results', tmp_path / 'r.jsonl')
    done = json.loads((tmp_path / 'r.jsonl').read_text())
    head,_,row = cells(out)[-3:]
    assert 'Recipe card' in out and head[2] == 'accuracy on 20 reviews'
    assert (row[2], row[3]) == (f"{done['accuracy']:.3f}", f"{done['memory']:.1f}") and done['memory'] > .1


def test_questions_are_judged_by_a_part_of_the_training_questions_or_by_the_test(data, tmp_path, run):
    pytest.importorskip('sklearn')
    args = ['--data', data, '--seeds', 0, 1, '--sizes', 6, 8, 1, '--lm-epochs', 1, '--epochs', 8, '--n-valid', 30,
            '--results', tmp_path / 'r.jsonl']
    for part, more in (('30 validation', []), ('32 test', ['--test'])):
        found = cells(run('quality_trec', *args, *more))[-5:]
        assert found[0][0] == f'error in percent, {part} questions'
        assert [row[0] for row in found[2:]] == ['seed 0', 'seed 1', 'mean']
        assert float(found[2][2]) < 10                                 # two classes that share no telling word
    lines = (tmp_path / 'r.jsonl').read_text()
    assert cells(run('quality_trec', *args))[2][0] == 'seed 0' and (tmp_path / 'r.jsonl').read_text() == lines
    with pytest.raises(SystemExit, match='no trec/train.csv'): run('quality_trec', '--data', tmp_path)


def test_cost_of_the_cache_is_measured_with_data_and_without(data, tmp_path, run):
    args = ['--tokens', 60, '--window', 9, '--sizes', 6, 8, 2, '--vocab', 50, '--bptt', 20, '--runs', 1]
    for more in ([], ['--data', data]):
        rows = cells(run('cache_cost', *args, *more))
        assert [row[0] for row in rows[2:]] == ['`evaluate_lm`', '`NeuralCache(9)`']
        assert all(float(cell.replace(',', '')) >= 0 for row in rows[2:] for cell in row[1:])
    with pytest.raises(SystemExit, match='There is no wikitext-2/valid.txt'): run('cache_cost', '--data', tmp_path)


@pytest.mark.parametrize('script, file', [('quality_lm', 'wikitext-2/train.txt'),
                                          ('quality_classifier', 'imdb/train.csv.gz')])
def test_without_data_one_line_says_what_is_missing(script, file, tmp_path, run):
    for args in ([], ['--data', tmp_path]):
        with pytest.raises(SystemExit, match=f'There is no .*{file}') as e: run(script, *args)
        assert '\n' not in str(e.value)


def test_without_fastai_one_line_says_so(data, run, monkeypatch):
    monkeypatch.delenv('AWDTEXT_FASTAI_PYTHON', raising=False)
    with pytest.raises(SystemExit, match='fastai is missing: give --fastai-python'): run('quality_lm', '--data', data)


def test_cache_and_dynamic_evaluation_are_compared_seed_by_seed(data, tmp_path, run, load):
    small = {'scale': .02, 'epochs': 1, 'cache_tokens': 60, 'dynamic_tokens': 40, 'lrs': [1e-4], 'decays': [.002]}
    args = ['--data', data, '--seeds', 0, 1, '--work', tmp_path / 'w', '--settings', json.dumps(small)]
    said = run('after_training', *args, '--results', tmp_path / 'r.jsonl')
    results = [json.loads(line) for line in (tmp_path / 'r.jsonl').open()]
    assert [r['seed'] for r in results] == [0, 1] and not list((tmp_path / 'w').iterdir())
    rows = {row[0]: row for row in cells(said)}
    lower = mean(100 * (1 - r['cache'] / r['plain']) for r in results)
    assert rows['cache'][2].startswith(f'{lower:.1f} ± ') and rows['cache'][3] == '21 %'
    again = run('after_training', *args, '--results', tmp_path / 'r.jsonl')
    assert 'seed 0' not in again and rows['plain'] == {row[0]: row for row in cells(again)}['plain']
    assert load('after_training').report([]) == 'No run is finished.'


def test_means_and_deviations_of_language_models(load):
    q = load('quality_lm')
    plan = q.planned(q.parse([]))
    assert [(r['name'], r['seed']) for r in plan] == [
        ('awdtext', 0), ('fastai', 0), ('fastai', 1), ('awdtext', 1), ('awdtext', 2), ('fastai', 2), ('defaults', 0)]
    figures = iter([(100., 50), (200., 70), (210., 70), (110., 52), (120., 54), (220., 70), (80., 150)])
    results = [{**run, 'perplexity': p, 'cpu_seconds': s, 'own_loss': 0.} for run, (p, s) in zip(plan, figures)]
    results.append({**plan[0], 'perplexity': 130., 'cpu_seconds': 56, 'own_loss': 0.})         # the latest line counts
    results.append({**plan[0], 'lr': 1., 'perplexity': 1., 'cpu_seconds': 1, 'own_loss': 0.})  # other settings do not
    assert cells(q.report(results, plan))[2:] == [
        ['awdtext, 1 epoch', '3', '130.0', '110.0', '120.0', '120.0 ± 10.0', '54 ± 2', '1.0 ± 0.0'],
        ['fastai 2.8.12, 1 epoch', '3', '200.0', '210.0', '220.0', '210.0 ± 10.0', '70 ± 0', '1.0 ± 0.0'],
        ['awdtext, `fit(3)`', '1', '80.0', '-', '-', '80.0', '150', '1.0']]


def test_means_of_classifiers(load):
    q = load('quality_classifier')
    lm,*draws = plan = q.planned(q.parse([]))
    results = [{**lm, 'reviews': 10, 'tokens': 2000, 'n_epoch': 1, 'cpu_minutes': 20., 'perplexity': 99.}]
    for run, ours, tfidf in zip(draws, (.8, .82, .9), (.7, .8, .81)):
        results.append({**run, 'accuracy': ours, 'tfidf': tfidf, 'cpu_minutes': 2.})
    assert cells(q.report(results, plan))[2:] == [
        ['draw 1', '0.800', '0.700', '2.0'], ['draw 2', '0.820', '0.800', '2.0'], ['draw 3', '0.900', '0.810', '2.0'],
        ['mean', '0.840', '0.770', '2.0']]


def test_draws_and_held_out_reviews_are_disjoint(data, load):
    q = load('quality_classifier')
    parts = [q.labelled(data, draw, 40, 30) for draw in (0, 1)]
    assert parts[0][1].equals(parts[1][1]) and not parts[0][0].equals(parts[1][0])
    for train,unseen in parts:
        assert len(train) == 40 and len(unseen) == 30 and not set(train.index) & set(unseen.index)


def test_fastais_weights_are_checked_before_they_are_judged(load):
    q = load('quality_lm')
    recorded = torch.load(Path(__file__).parent / 'fixtures/fastai_models.pt', weights_only=True)['language_model']
    model = q.get_language_model(20, {'emb_sz': 4, 'n_hid': 6, 'n_layers': 3})
    model.load_state_dict(q.from_fastai(recorded['weights'], 3))
    x,logits = recorded['ids'][0], recorded['logits'][0]
    y = x.roll(1, 1)
    loss = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()))
    q.check_loss(model, {'x': x, 'y': y, 'loss': loss})
    with pytest.raises(SystemExit, match='not the same model'):
        q.check_loss(model, {'x': x, 'y': y, 'loss': loss + .001})


tiny_ablation = {'tokens': [300, 120, 150], 'emb_sz': 6, 'n_hid': 10, 'bs': 4, 'bptt': 12, 'epochs': [2, 1]}


@pytest.fixture
def ablation(data, tmp_path, run):
    def call(*args):
        return run('ablation', '--data', data, '--results', tmp_path / 'r.jsonl', '--work', tmp_path / 'work',
                   '--settings', json.dumps(tiny_ablation), *args)
    return call


def test_ablation_is_shared_by_two_processes_and_told_again_from_the_file(ablation, tmp_path, load):
    ablation('--seeds', 0, '--shard', '2/2')
    first = ablation('--seeds', 0)
    lines = (tmp_path / 'r.jsonl').read_text()
    results = [json.loads(line) for line in lines.splitlines()]
    rows = [r['row'] for r in results]
    assert sorted(rows) == sorted(load('ablation').paper) and not list((tmp_path / 'work').iterdir())
    assert rows[:4] == ['NT-ASGD', 'embedding dropout', 'AR/TAR', 'weight dropping']        # the second half came first
    assert {r['row']: r['epochs'] for r in results} == {**dict.fromkeys(rows, 3), 'fine-tuning': 2}
    assert len({r['test'] for r in results}) >= 8 and all(r['test'] > 1 for r in results)
    second = ablation('--seeds', 0)
    assert second.strip() in first and (tmp_path / 'r.jsonl').read_text() == lines
    assert [row[:2] for row in cells(second)[2:4]] == [['AWD-LSTM', '1'], ['– fine-tuning', '1']]


def test_an_ablation_that_is_stopped_goes_on(ablation, tmp_path, load, monkeypatch):
    q = load('ablation')
    evaluate = q.figures
    def stopped(learn):
        if len(learn.record) == 3: raise KeyboardInterrupt
        return evaluate(learn)
    with monkeypatch.context() as patch:
        patch.setattr(q, 'figures', stopped)
        with pytest.raises(KeyboardInterrupt): ablation('--seeds', 0, '--shard', '1/8')
    assert len((tmp_path / 'r.jsonl').read_text().splitlines()) == 1
    said = ablation('--seeds', 0, '--shard', '1/8')
    rows = [json.loads(line)['row'] for line in (tmp_path / 'r.jsonl').read_text().splitlines()]
    assert rows == ['fine-tuning', 'AWD-LSTM'] and 'is finished: its result is loaded' in said


def test_each_row_takes_one_thing_away(data, load):
    q = load('ablation')
    def made(row):
        s = q.settings(row, tiny_ablation)
        learn = q.learner(data, 0, s)
        c,penalties = learn.config, next(cb for cb in learn.cbs if type(cb).__name__ == 'RNNRegularizer')
        return {'sizes': (c.emb_sz, c.n_hid, c.tie_weights), 'weight': c.weight_p, 'embed': c.embed_p, 'wd': learn.wd,
                'penalties': (penalties.alpha, penalties.beta), 'windows': learn.dls.train.windows is not None,
                'averaging': s['averaging'], 'others': (c.output_p, c.hidden_p, c.input_p, c.n_layers)}
    full = made('AWD-LSTM')
    assert full == {'sizes': (6, 10, True), 'weight': .5, 'embed': .1, 'wd': 1.2e-5, 'penalties': (2., 1.),
                    'windows': True, 'averaging': True, 'others': (.4, .25, .4, 2)}
    less = {'NT-ASGD': ('averaging', False), 'variable sequence lengths': ('windows', False), 'weight dropping': (
            'weight', 0.), 'embedding dropout': ('embed', 0.), 'weight decay': ('wd', 0.), 'AR/TAR': (
            'penalties', (0., 0.)), 'small embedding': ('sizes', (10, 10, True))}
    assert set(less) | {'AWD-LSTM'} == set(q.changes)
    for row, (name, value) in less.items(): assert made(row) == {**full, name: value}
    whole = q.learner(data, 0, q.settings('variable sequence lengths', tiny_ablation)).dls.train
    random_windows = q.learner(data, 0, q.settings('AWD-LSTM', tiny_ablation)).dls.train
    assert torch.equal(*(torch.cat([x for x, _ in dl], 1) for dl in (whole, random_windows)))


def test_without_averaging_the_rate_is_halved_by_the_trigger(load):
    q = load('ablation')
    cb,learn = q.HalveRate(), SimpleNamespace(opt=SimpleNamespace(param_groups=[{'lr': 30.}]), valid_figures={})
    rates = []
    for loss in (5, 4, 3, 3, 3, 3, 5.1, 5, 5, 5, 5, 5, 5, 5.2):
        learn.valid_figures['valid_loss'] = loss
        cb.after_epoch(learn)
        rates.append(learn.opt.param_groups[0]['lr'])
    assert rates == [30.] * 6 + [15.] * 7 + [7.5]


def test_table_of_the_ablation(load):
    q = load('ablation')
    args = q.parse(['--seeds', '0', '1', '2'])
    tests = {'AWD-LSTM': (100., 200., 300.), 'weight dropping': (110., 230., 330.), 'NT-ASGD': (99., 198., 300.),
             'AR/TAR': (90., 180., 273.), 'fine-tuning': (101.,)}
    results = [{'row': row, 'seed': seed, 'settings': q.settings(row), 'train': 50., 'valid': 2 * v, 'test': v}
               for row, values in tests.items() for seed, v in enumerate(values)]
    rows = {row[0]: row[1:] for row in cells(q.report(results, args))[2:]}
    assert rows['AWD-LSTM'] == ['3', '50.0 ± 0.0', '400.0 ± 200.0', '200.0 ± 100.0', '', '', '', '']
    assert rows['– weight dropping'][3:] == ['223.3 ± 110.2', '+11.7 ± 2.9', '+20.2', '+13.8', 'agrees']
    assert rows['– AR/TAR'][4::3] == ['-9.7 ± 0.6', 'the reverse']
    assert rows['– NT-ASGD'][4:] == ['-0.7 ± 0.6', '+11.2', '+5.9', 'within the noise']
    assert rows['– fine-tuning'][0::7] == ['1', '-'] and rows['– weight decay'][:2] == ['0', '-']
    for bad in ('3/2', '0/2', 'half'):
        with pytest.raises(SystemExit): q.parse(['--shard', bad])


def test_speed_is_tokens_over_seconds_of_cpu(load, monkeypatch):
    q = load('quality_classifier')
    clock = iter([10., 14.])
    monkeypatch.setattr(q, 'process_time', lambda: next(clock))
    speed,learn = q.Speed(warm=2, steps=3), SimpleNamespace(x=torch.zeros(4, 5), iter=0)
    with pytest.raises(q.CancelFitException):
        for learn.iter in range(9):
            speed.before_batch(learn)
            speed.after_batch(learn)
    assert learn.iter == 4 and speed.value == 3 * 20 / 4
