"The published results by one command: its numbers, what it leaves, how it goes on, and what it refuses."
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict, replace

import pytest
import torch

from awdtext import recipes
from awdtext.cli import main
from awdtext.data.vocab import Vocab
from awdtext.recipes import PARTS, PUBLISHED, RECIPES, Results, find_recipe, recipe_data, recipe_learner, reproduce
from awdtext.training.callback import Callback
from awdtext.training.metrics import BitsPerChar, Perplexity
from awdtext.training.resume import RunFolder
from awdtext.training.rnn import NTASGD, GradientClip, RNNRegularizer, ScaleLRBySeqLen
from awdtext.training.schedule import ParamScheduler

# A second transcription. awd-lstm-lm: defaults of main.py, then its README's command lines, main.py and finetune.py;
# the mixture: zihangdai/mos, README, whose own defaults differ in --batch_size, --dropoutl and --n_experts

published = {
    'ptb_lstm': '--batch_size 20 --dropouti 0.4 --dropouth 0.25 --seed 141 --epoch 500',
    'wt2_lstm': '--epochs 750 --dropouth 0.2 --seed 1882',
    'ptb_qrnn': '--model QRNN --batch_size 20 --clip 0.2 --wdrop 0.1 --nhid 1550 --nlayers 4 --emsize 400 '
                '--dropouth 0.3 --seed 9001 --dropouti 0.4 --epochs 550',
    'wt2_qrnn': '--epochs 500 --clip 0.25 --dropouti 0.4 --dropouth 0.2 --nhid 1550 --nlayers 4 --seed 4002 '
                '--model QRNN --wdrop 0.1 --batch_size 40',
    'wt103_qrnn': '--epochs 14 --nlayers 4 --emsize 400 --nhid 2500 --alpha 0 --beta 0 --dropoute 0 --dropouth 0.1 '
                  '--dropouti 0.1 --dropout 0.1 --wdrop 0 --wdecay 0 --bptt 140 --batch_size 60 --optimizer adam '
                  '--lr 1e-3 --when 12 --model QRNN',
    'enwik8_lstm': '--epochs 50 --nlayers 3 --emsize 400 --nhid 1840 --alpha 0 --beta 0 --dropoute 0 --dropouth 0.1 '
                   '--dropouti 0.1 --dropout 0.4 --wdrop 0.2 --wdecay 1.2e-6 --bptt 200 --batch_size 128 '
                   '--optimizer adam --lr 1e-3 --when 25 35',
    'ptb_char_lstm': '--epochs 500 --nlayers 3 --emsize 200 --nhid 1000 --alpha 0 --beta 0 --dropoute 0 '
                     '--dropouth 0.25 --dropouti 0.1 --dropout 0.1 --wdrop 0.5 --wdecay 1.2e-6 --bptt 150 '
                     '--batch_size 128 --optimizer adam --lr 2e-3 --when 300 400',
    'ptb_mos': '--dropouti 0.4 --dropoutl 0.29 --dropouth 0.225 --seed 28 --batch_size 12 --lr 20.0 --epoch 1000 '
               '--nhid 960 --nhidlast 620 --emsize 280 --n_experts 15',
    'wt2_mos': '--epochs 1000 --dropouth 0.2 --seed 1882 --n_experts 15 --nhid 1150 --nhidlast 650 --emsize 300 '
               '--batch_size 15 --lr 15.0 --dropoutl 0.29 --dropouti 0.55',
    # fastai/fastai, nbs/examples/train_wt2.py, in the words of main.py
    'wt2_one_cycle': '--epochs 90 --dropouth 0.2 --dropouti 0.6 --alpha 3 --beta 2 --clip 0.1 --wdecay 0.1 --lr 5e-3 '
                     '--batch_size 104 --bptt 72 --optimizer one_cycle',
}
finetuning = {'ptb_lstm': (500, 30), 'wt2_lstm': (750, 30), 'ptb_qrnn': (300, 30), 'wt2_qrnn': (500, 30),
              'ptb_mos': (1000, 25), 'wt2_mos': (1000, 20)}
pointer = {'ptb_lstm': (500, 1., .1), 'wt2_lstm': (3785, .662, .1279), 'ptb_qrnn': (500, 1., .1),
           'wt2_qrnn': (3785, .662, .1279)}
flags = {'emb_sz': 'emsize', 'n_hid': 'nhid', 'n_layers': 'nlayers', 'output_p': 'dropout', 'hidden_p': 'dropouth',
         'input_p': 'dropouti', 'embed_p': 'dropoute', 'weight_p': 'wdrop', 'latent_p': 'dropoutl', 'lr': 'lr',
         'clip': 'clip', 'wd': 'wdecay', 'bs': 'batch_size', 'bptt': 'bptt', 'nonmono': 'nonmono', 'alpha': 'alpha',
         'beta': 'beta', 'optimizer': 'optimizer', 'epochs': 'epochs', 'seed': 'seed', 'n_experts': 'n_experts',
         'n_hid_last': 'nhidlast'}


def parsed(line):
    p = ArgumentParser()
    for name, value in dict(emsize=400, nhid=1150, nlayers=3, lr=30., clip=.25, epochs=8000, batch_size=80, bptt=70,
                            dropout=.4, dropouth=.3, dropouti=.65, dropoute=.1, wdrop=.5, seed=1111, nonmono=5,
                            alpha=2., beta=1., wdecay=1.2e-6, dropoutl=0., n_experts=0).items():
        p.add_argument(f'--{name}', type=type(value), default=value)
    p.add_argument('--nhidlast', type=int)
    p.add_argument('--model', default='LSTM')
    p.add_argument('--optimizer', default='sgd')
    p.add_argument('--when', nargs='+', type=int, default=[])
    return p.parse_args(line.split())


@pytest.mark.parametrize('name', RECIPES)
def test_every_number_of_the_command_line(name):
    recipe,said = RECIPES[name], parsed(published[name])
    for ours, flag in flags.items(): assert getattr(recipe, ours) == getattr(said, flag), ours
    assert recipe.arch == {'LSTM': 'AWD_LSTM', 'QRNN': 'QRNN'}[said.model] and list(recipe.when) == said.when
    assert (recipe.finetune_epochs, recipe.finetune_lr) == finetuning.get(name, (0, 30))
    assert recipe.cache == pointer.get(name) and recipe.scale == 1 and recipe.name == name


def test_settings_of_dynamic_evaluation():
    "README of benkrause/dynamic-evaluation; what `--oldhyper` prints, by hand; README of zihangdai/mos."
    assert recipes.ptb_lstm.dynamic == (5e-5, .002, 2e-5, 5)
    assert recipes.ptb_qrnn.dynamic == (.00012, .02, 2e-5, 20) and recipes.wt2_qrnn.dynamic == (.00012, .008, 2e-5, 20)
    assert recipes.wt2_lstm.dynamic == pytest.approx((3.09e-5, .001429, 1.547e-5, 5), rel=2e-3)
    assert recipes.ptb_mos.dynamic == pytest.approx((4.64e-5, .004412, 2.319e-5, 5), rel=2e-3)
    assert recipes.wt2_mos.dynamic == pytest.approx((3.09e-5, .001176, 3.095e-5, 5), rel=2e-3)
    assert all(RECIPES[name].dynamic is None for name in ('wt103_qrnn', 'enwik8_lstm', 'ptb_char_lstm'))


def test_published_figures():
    "Tables 1 and 4 of the paper, and the README."
    wt2,ptb = PUBLISHED['wt2_lstm'], PUBLISHED['ptb_lstm']
    assert list(wt2['papers'].values()) == [(69.1, 66.0), (68.6, 65.8), (53.8, 52.0), (46.4, 44.3)]
    assert list(ptb['papers'].values()) == [(60.7, 58.8), (60.0, 57.3), (53.9, 52.8), (51.6, 51.1)]
    assert list(wt2['README'].values()) == [(68.7, 65.6), (67.4, 64.7), (52.2, 50.6)]
    assert list(ptb['README'].values()) == [(61.2, 58.8), (58.8, 56.5), (53.2, 52.5)]
    assert PUBLISHED['enwik8_lstm']['papers']['plain'] == (None, 1.232)


@pytest.mark.parametrize('factor', [.01, .1, .25, .5, 1.3, 2])
def test_scaled_sizes_are_the_nearest_multiples_of_eight(factor):
    for recipe in RECIPES.values():
        scaled = recipe.scaled(factor)
        for name in ('emb_sz', 'n_hid', 'n_hid_last'):
            size = getattr(recipe, name)
            if size is None: assert getattr(scaled, name) is None
            else:
                nearest = min(range(8, 8000, 8), key=lambda n: (abs(n - factor * size), -n))
                assert getattr(scaled, name) == nearest
        rest = {'emb_sz', 'n_hid', 'n_hid_last', 'cache', 'dynamic', 'scale'}
        assert {k: v for k, v in asdict(scaled).items() if k not in rest} == {
            k: v for k, v in asdict(recipe).items() if k not in rest}
        assert (scaled.cache, scaled.dynamic, scaled.scale) == (None, None, factor)
    assert recipes.wt2_lstm.scaled(1) is recipes.wt2_lstm


def test_shorter_recipes():
    short = recipes.ptb_char_lstm.lasting(50)
    assert (short.epochs, short.when) == (50, (30, 40))
    assert recipes.wt2_lstm.lasting() == recipes.wt2_lstm
    assert recipes.wt2_lstm.lasting(3, 0) == replace(recipes.wt2_lstm, epochs=3, finetune_epochs=0)
    for args in ((0,), (1, -1), (1.5,)):
        with pytest.raises(ValueError, match='use a whole number, 1 or more'): recipes.wt2_lstm.lasting(*args)


# Data

words = [f'w{i}' for i in range(30)]


def text(rng, n, choices, k=9): return '\n'.join(' '.join(rng.choices(choices, k=k)) for _ in range(n)) + '\n'


@pytest.fixture
def data(tmp_path):
    "A folder of made-up text; a line of the test part is empty."
    rng,folder = random.Random(0), tmp_path / 'data'
    folder.mkdir()
    for part, n in zip(PARTS, (80, 12, 10)): (folder / f'{part}.txt').write_text(text(rng, n, words))
    (folder / 'test.txt').write_text('\n' + (folder / 'test.txt').read_text())
    return folder


def test_words_and_their_line_ends(data):
    dls = recipe_data(recipes.wt2_lstm, data)
    whole = (data / 'test.txt').read_text().replace('\n', ' <eos> ').split()
    assert dls.vocab.decode(dls.test.corpus.ids) == whole and whole[0] == '<eos>'
    assert [dl.corpus.n_tokens for dl in (dls.train, dls.valid, dls.test)] == [800, 120, 101]
    assert len(dls.vocab) == len(set(whole) | set((data / 'train.txt').read_text().split())) + 2      # xxunk and xxpad
    first,second = (next(iter(dls.train))[0][0, :20].tolist() for _ in range(2))
    assert first[:5] == second[:5] == dls.train.corpus.ids[:5].tolist()                  # the text keeps its order


def test_characters_and_bytes(tmp_path):
    for part in PARTS: (tmp_path / f'{part}.txt').write_text('a e r _ b\nN _ e\n')
    dls = recipe_data(recipes.ptb_char_lstm, tmp_path)
    assert dls.vocab.decode(dls.valid.corpus.ids) == 'a e r _ b <eos> N _ e <eos>'.split()
    raw = 'äö x\n'.encode() * 9
    for part in PARTS: (tmp_path / f'{part}.txt').write_bytes(raw)
    dls = recipe_data(recipes.enwik8_lstm, tmp_path)
    assert dls.test.corpus.ids.tolist() == list(raw) and len(dls.vocab) == 256 and dls.vocab.stoi['<eos>'] == 10
    x,y = next(iter(recipe_data(replace(recipes.enwik8_lstm, bs=1), tmp_path).train))
    assert x[0, 1:].tolist() == y[0, :-1].tolist() == list(raw)[1:x.shape[1]]


# The learner

def test_the_learner_is_what_the_recipe_says(data):
    recipe = recipes.ptb_qrnn.scaled(.02)
    learn = recipe_learner(recipe, recipe_data(recipe, data))
    cbs = {type(cb): cb for cb in learn.cbs}
    assert cbs[GradientClip].max_norm == .2 and cbs[NTASGD].n == 5 and cbs[ScaleLRBySeqLen].bptt == 70
    assert (cbs[RNNRegularizer].alpha, cbs[RNNRegularizer].beta) == (2., 1.)
    assert (learn.wd, learn.lr, learn.dls.train.bs, learn.dls.valid.bs) == (1.2e-6, 30., 20, 10)
    c = learn.config
    assert (c.arch, c.emb_sz, c.n_hid, c.n_layers) == ('QRNN', 8, 32, 4)
    assert (c.output_p, c.hidden_p, c.input_p, c.embed_p, c.weight_p) == (.4, .3, .4, .1, .1)
    assert [type(m) for m in learn.metrics] == [Perplexity]


def test_the_learner_of_a_mixture(data):
    recipe = recipes.ptb_mos.scaled(.05)
    learn = recipe_learner(recipe, recipe_data(recipe, data))
    decoder = learn.model.decoder
    assert (decoder.n_experts, decoder.latent_dp.p, learn.encoder.out_sz) == (15, .29, 32)


def test_a_large_vocabulary_has_an_adaptive_softmax(data):
    recipe = recipes.wt103_qrnn.scaled(.01)
    assert recipes._decoder(recipe, 75_000) == {}
    dls = recipe_data(recipe, data)
    dls.vocab = Vocab([*dls.vocab.itos, *(f'rare{i}' for i in range(75_001 - len(dls.vocab)))])
    model = recipe_learner(recipes.wt103_qrnn.scaled(.04), dls).model
    assert model.decoder.softmax.cutoffs == [2800, 20_000, 75_001]


class Rates(Callback):
    "Keeps the rate of each epoch's first and last batch, and the optimiser."
    def __init__(self): self.seen = []
    def before_step(self, learn):
        self.seen.append((learn.epoch, learn.opt.param_groups[0]['lr']))
        self.opt = learn.opt
    order = ParamScheduler.order + 1       # before the length of the window changes it


def test_adam_and_its_rates(tmp_path, monkeypatch):
    rng = random.Random(0)
    for part, n in zip(PARTS, (60, 10, 10)): (tmp_path / f'{part}.txt').write_text(text(rng, n, 'abc_'))
    recipe = replace(recipes.ptb_char_lstm.scaled(.05).lasting(5), bs=8, bptt=30, when=(2, 4),
                     dynamic=(2e-4, .01, 2e-5, 40))
    rates = Rates()
    def learner(*args): return recipe_learner(*args).add_cb(rates)
    monkeypatch.setattr(recipes, 'recipe_learner', learner)
    results = reproduce(recipe, tmp_path, tmp_path / 'out')
    steps = [(0, 2e-3), (1, 2e-3), (2, 2e-4), (3, 2e-4), (4, 2e-5)]
    seen = dict(rates.seen)
    assert len(set(rates.seen)) == 5 and [seen[e] for e, _ in steps] == pytest.approx([lr for _, lr in steps])
    assert type(rates.opt) is torch.optim.Adam and rates.opt.param_groups[0]['weight_decay'] == 1.2e-6
    assert results['stages_done'] == ['train', 'plain', 'dynamic'] and 'unfinetuned' not in results
    best = min(results['curve'], key=lambda row: row['valid_loss'])
    assert results['plain']['valid'] == pytest.approx(best[BitsPerChar().name], abs=.05)   # bits, of the best epoch


def test_one_cycle_is_killed_and_goes_on(data, tmp_path, monkeypatch):
    recipe = replace(recipes.wt2_one_cycle.scaled(.01).lasting(4), bs=8, bptt=20, cache=(9, .5, .1),
                     dynamic=(5e-5, .002, 2e-5, 30))
    rates = Rates()
    with monkeypatch.context() as patch:
        patch.setattr(recipes, 'recipe_learner', lambda *args: recipe_learner(*args).add_cb(rates))
        whole = reproduce(recipe, data, tmp_path / 'whole')
    lrs,group = [lr for _, lr in rates.seen], rates.opt.param_groups[0]
    assert max(lrs) == pytest.approx(5e-3, rel=.05) and lrs[0] == pytest.approx(5e-4) and lrs[-1] < 1e-4
    assert lrs.index(max(lrs)) == pytest.approx(len(lrs) / 4, abs=1)
    assert (type(rates.opt), group['eps'], group['weight_decay']) == (torch.optim.AdamW, 1e-7, .1)
    write,n = RunFolder.write, [0]
    def killed(run, tree, **more):
        n[0] += 1
        if n[0] == 4: raise SystemExit('killed')
        return write(run, tree, **more)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, 'write', killed)
        with pytest.raises(SystemExit, match='killed'): reproduce(recipe, data, tmp_path / 'cut', every='3steps')
    again = reproduce(recipe, data, tmp_path / 'cut', every='3steps')
    assert figures(again) == figures(whole) and again['stages_done'] == ['train', 'plain', 'cache', 'dynamic']
    with pytest.raises(ValueError, match='wt2_one_cycle is trained by Adam and not fine-tuned'): recipe.lasting(2, 1)


def test_fine_tuning_of_the_mixture_has_its_own_rate(data, tmp_path):
    recipe,rates = replace(recipes.ptb_mos.scaled(.02).lasting(1, 1), bs=8), Rates()
    learn = recipe_learner(recipe, recipe_data(recipe, data), tmp_path).add_cb(rates)
    recipes._fit(learn, recipe, tmp_path, '5min', None)
    assert set(rates.seen) == {(0, 20.), (1, 25.)} and type(rates.opt) is torch.optim.SGD


# From end to end

short = ['--scale', '.01', '--epochs', '2', '--finetune-epochs', '1']


@pytest.fixture
def shell(capsys):
    "Exit status, standard output and standard error of a command line."
    def run(*argv):
        capsys.readouterr()
        torch.set_num_threads(1)
        return main([str(a) for a in argv]), *capsys.readouterr()
    return run


def figures(results):
    "All but what the clock says."
    curve = [{k: v for k, v in row.items() if k not in ('time', 'tokens/s')} for row in results['curve']]
    return {**{k: v for k, v in results.items() if k != 'seconds'}, 'curve': curve}


@pytest.fixture
def quick(monkeypatch):
    "Nothing is tuned twice over: a grid of one point."
    monkeypatch.setattr(recipes, 'tune_dynamic', lambda model, ids, stats, lrs, decays, bptt: [
        SimplePoint(recipes.DynamicEvaluation(lrs[0], decays[0], bptt=bptt))])


class SimplePoint:
    def __init__(self, settings): self.settings = settings


def test_a_whole_run_by_one_command(data, tmp_path, shell, quick):
    out = tmp_path / 'out'
    status,said,err = shell('reproduce', 'wt2_lstm', '--data', data, '--out', out, *short, '--seed', 3)
    assert (status, err) == (0, '')
    results = json.loads((out / 'results.json').read_text())
    assert results['stages_done'] == ['train', 'finetune', 'plain', 'cache', 'dynamic'] == list(results['seconds'])
    assert all(s > 0 for s in results['seconds'].values()) and results['versions']['torch'] == torch.__version__
    assert [row['stage'] for row in results['curve']] == [1, 1, 2]
    assert results['settings']['recipe']['seed'] == 3 and results['settings']['recipe']['emb_sz'] == 8
    for stage, title in recipes.STAGES.items():
        row = ' / '.join(f'{results[stage][part]:.2f}' for part in ('valid', 'test'))
        assert re.search(rf'^{title} +{row}  ', said, re.M), said
    assert '68.60 / 65.80  67.40 / 64.70' in said and 'wt2_lstm, sizes times 0.01, seed 3' in said
    assert (results['cache']['tuned'], results['dynamic']['tuned']) == (True, True)
    exact = shell('evaluate', out / 'language_model.safetensors', data / 'test.txt')[1]
    assert exact.startswith(f"perplexity {results['plain']['test']:.2f}, ")
    before = (out / 'results.json').read_bytes()
    status,said,_ = shell('reproduce', 'wt2_lstm', '--data', data, '--out', out, *short, '--seed', 3)
    assert status == 0 and (out / 'results.json').read_bytes() == before and 'train_loss' not in said


def test_another_run_is_refused(data, tmp_path, shell, quick):
    out = tmp_path / 'out'
    argv = ['reproduce', 'wt2_lstm', '--data', data, '--out', out, '--scale', '.01', '--finetune-epochs', 0]
    assert shell(*argv, '--epochs', 1)[0] == 0
    before = (out / 'results.json').read_bytes()
    others = {'seed was 1882 and is 5': ['--epochs', 1, '--seed', 5], 'epochs was 1 and is 2': ['--epochs', 2],
              "precision was 'fp32' and is 'bf16'": ['--epochs', 1, '--precision', 'bf16']}
    for message, options in others.items():
        status,_,err = shell(*argv, *options)
        assert (status, len(err.splitlines())) == (1, 1) and message in err and 'give another folder' in err
    with (data / 'valid.txt').open('a') as f: f.write('w1 w2\n')
    assert 'texts.valid' in shell(*argv, '--epochs', 1)[2]
    assert (out / 'results.json').read_bytes() == before
    (out / 'results.json').write_text('{"settings"')
    status,_,err = shell(*argv, '--epochs', 1)
    assert (status, len(err.splitlines())) == (1, 1) and 'results.json is damaged' in err


tiny = replace(recipes.wt2_lstm.scaled(.01).lasting(4, 2), bs=8, bptt=20, nonmono=1, cache=(9, .5, .1),
               dynamic=(5e-5, .002, 2e-5, 30))


@pytest.mark.parametrize('when', ['ntasgd', 'finetune', 'evaluation'])
def test_a_killed_run_goes_on_to_the_same_figures(when, data, tmp_path, monkeypatch, capsys):
    whole = reproduce(tiny, data, tmp_path / 'whole')
    write,stage,n = RunFolder.write, Results.stage, [0]
    def killed_after(run, tree, **more):
        n[0] += when in str(run.folder)
        path = write(run, tree, **more)
        if n[0] == 3: raise SystemExit('killed')
        return path
    def killed_before(run, name, work):
        if when == 'evaluation' and name == 'cache': raise SystemExit('killed')
        stage(run, name, work)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, 'write', killed_after)
        patch.setattr(Results, 'stage', killed_before)
        with pytest.raises(SystemExit, match='killed'): reproduce(tiny, data, tmp_path / 'cut', every='3steps')
    partial = json.loads((tmp_path / 'cut/results.json').read_text())
    assert partial['stages_done'] == {'ntasgd': [], 'finetune': ['train'],
                                      'evaluation': ['train', 'finetune', 'plain']}[when]
    assert [name in partial for name in ('unfinetuned', 'plain')] == [
        'train' in partial['stages_done'], 'plain' in partial['stages_done']]
    capsys.readouterr()
    assert figures(reproduce(tiny, data, tmp_path / 'cut', every='3steps')) == figures(whole)
    said = capsys.readouterr().out
    assert [said.count('Going on with the run'), said.count('its result is loaded')] == {
        'ntasgd': [1, 0], 'finetune': [1, 1], 'evaluation': [0, 2]}[when]


def test_what_the_first_stage_has_to_say_is_said_once(data, tmp_path, capsys):
    reproduce(tiny.lasting(2, 1), data, tmp_path / 'out')
    said = capsys.readouterr().out
    assert (said.count('Averaging never began'), said.count('its result is loaded')) == (1, 0)
    for message in ('is finished', 'The model holds the weights of epoch'): assert said.count(message) <= 1


def test_an_interrupted_run_goes_on(data, tmp_path, monkeypatch):
    class Interrupt(Callback):
        decides = False
        def after_step(self, learn):
            if learn.epoch == 2: raise KeyboardInterrupt
    def learner(*args): return recipe_learner(*args).add_cb(Interrupt())
    with monkeypatch.context() as patch:
        patch.setattr(recipes, 'recipe_learner', learner)
        with pytest.raises(KeyboardInterrupt): reproduce(tiny, data, tmp_path / 'out')
    assert json.loads((tmp_path / 'out/results.json').read_text())['stages_done'] == []
    whole = reproduce(tiny, data, tmp_path / 'whole')
    assert figures(reproduce(tiny, data, tmp_path / 'out')) == figures(whole)


def test_what_is_tuned_where_nothing_is_published(data, monkeypatch):
    asked = []
    def tune(model, ids, stats, lrs, decays, bptt):
        asked.append((len(ids), lrs, decays, bptt))
        return [SimplePoint(None)]
    monkeypatch.setattr(recipes, 'tune_dynamic', tune)
    learn = recipe_learner(tiny, recipe_data(tiny, data))
    for recipe in (recipes.wt103_qrnn, recipes.ptb_char_lstm): recipes._tuned_dynamic(learn, recipe, {})
    assert asked[0] == (120, [3e-5, 5e-5, 1e-4], [.001, .002, .005], 5)
    assert asked[1] == (120, pytest.approx([1.2e-4, 2e-4, 4e-4]), pytest.approx([.004, .008, .02]), 20)
    assert recipes._evaluations(recipes.ptb_char_lstm) == ['plain', 'dynamic']


@pytest.mark.slow
def test_a_command_that_is_killed(data, tmp_path):
    "The same by SIGKILL, at moments of chance."
    command = [sys.executable, '-c', 'import sys; from awdtext.cli import main; sys.exit(main())', 'reproduce',
               'wt2_lstm', '--data', data, '--scale', '.01', '--epochs', '6', '--finetune-epochs', '3', '--out']
    env,rng = {**os.environ, 'OMP_NUM_THREADS': '1'}, random.Random(0)
    start = time.monotonic()
    subprocess.run([*command, tmp_path / 'whole'], check=True, env=env, stdout=subprocess.DEVNULL)
    took = time.monotonic() - start
    codes = []
    for _ in range(4):
        run = subprocess.Popen([*command, tmp_path / 'cut'], env=env, stdout=subprocess.DEVNULL)
        try: run.wait(rng.uniform(.2, .9) * took)
        except subprocess.TimeoutExpired: run.send_signal(signal.SIGKILL)
        codes.append(run.wait())
    assert set(codes) <= {0, -signal.SIGKILL} and -signal.SIGKILL in codes
    subprocess.run([*command, tmp_path / 'cut'], check=True, env=env, stdout=subprocess.DEVNULL)
    whole,cut = (json.loads((tmp_path / name / 'results.json').read_text()) for name in ('whole', 'cut'))
    assert figures(cut) == figures(whole)


# Refusals

def test_a_recipe_without_its_files(data, tmp_path, shell):
    (data / 'test.txt').unlink()
    all_three = 'no train.txt and no valid.txt and no test.txt'
    for folder, missing in ((data, 'no test.txt in'), (tmp_path / 'none', all_three)):
        status,out,err = shell('reproduce', 'wt2_lstm', '--data', folder, '--out', tmp_path / 'out')
        assert (status, out, len(err.splitlines())) == (1, '', 1) and missing in err
    assert not (tmp_path / 'out').exists()


refusals = {
    'unknown recipe': (['wt3_lstm'], "no recipe 'wt3_lstm': use one of ptb_lstm, wt2_lstm, ptb_qrnn"),
    'scale 0': (['wt2_lstm', '--scale', 0], 'scale=0.0: use a positive number'),
    'infinite scale': (['wt2_lstm', '--scale', 'inf'], 'scale=inf: use a positive number'),
    'no epoch': (['wt2_lstm', '--epochs', 0], 'epochs=0: use a whole number'),
    'precision': (['wt2_lstm', '--precision', 'fp8'], "precision='fp8': use 'fp32', 'fp16' or 'bf16'"),
    'seed': (['wt2_lstm', '--seed', -1], 'seed=-1: a seed is 0 or a positive number'),
    'words for characters': (['ptb_char_lstm'], "ptb_char_lstm reads characters that stand between blanks"),
    'fine-tuning of Adam': (['enwik8_lstm', '--finetune-epochs', 2], 'trained by Adam and not fine-tuned'),
}


@pytest.mark.parametrize('problem', refusals)
def test_what_cannot_be_is_told_in_one_line(problem, data, tmp_path, shell):
    argv,message = refusals[problem]
    status,out,err = shell('reproduce', *argv, '--data', data, '--out', tmp_path / 'out')
    assert (status, out, len(err.splitlines())) == (1, '', 1) and message in err
    assert not (tmp_path / 'out').exists()


def test_numbers_for_bytes_and_empty_files(data, tmp_path, shell):
    argv = ['reproduce', 'enwik8_lstm', '--data', data, '--out', tmp_path / 'out']
    (data / 'valid.txt').write_text('60 109 101\n100 105\n')
    assert 'valid.txt holds numbers and blanks only: give the raw text' in shell(*argv)[2]
    (data / 'valid.txt').write_text('')
    assert 'nothing to read' in shell(*argv)[2]
    assert 'the validation part is empty' in shell('reproduce', 'wt2_lstm', *argv[2:])[2]
    assert not (tmp_path / 'out').exists()


def test_recipes_by_name():
    assert find_recipe('wt2_mos') is recipes.wt2_mos
    assert set(published) == set(RECIPES) == set(PUBLISHED)


@pytest.mark.parametrize('recipe', ['wt2', None, 3])
def test_no_recipe(recipe, tmp_path):
    with pytest.raises(ValueError, match=f'There is no recipe {recipe!r}: use one of ptb_lstm'):
        reproduce(recipe, tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('factor', [0, -1, float('nan'), 'half', None])
def test_no_scale(factor):
    with pytest.raises(ValueError, match=f'scale={factor!r}: use a positive number'): recipes.wt2_lstm.scaled(factor)
