"""What each part of the AWD-LSTM is worth: Table 4 of Merity et al. (2017) at a scale where one afternoon is enough.

The first 30,000 training tokens of WikiText-2 and a model of 2.9 million parameters, 97 to a token, where the paper has
26 (Penn Treebank) and 16 (WikiText-2): it overfits, and what keeps it from doing so is what the rows take away. The
vocabulary is of words that come three times, 1,640. Sizes 200/600/2 in bfloat16 (float32 on processors without its
products), bs 20, bptt 35; dropouts, AR, TAR, rate and clipping as published for Penn Treebank; 60 epochs of NT-ASGD and
at most 12 of fine-tuning; validation and test on 10,000 and 30,000 tokens. The weight decay is ten times the published
one: a run has 3,000 steps, not 300,000, in which the published one would have shrunk the weights by a seventh. All this
was fixed before the first run, after one longer training (80 epochs) of the full model with another seed, which showed
that it overfits (perplexity 19 on its training text, 40 on the test's). A model of 0.66 million parameters and 95
epochs, tried first, did not (34 and 44), and but for fine-tuning none of its rows agreed with the paper.

The rows, each the full training but for one thing:

- fine-tuning: the full run before its second stage.
- NT-ASGD: as in the paper, SGD whose rate is halved by the same criterion (and the criterion then begins anew), for as
  many epochs as both stages have; the best epoch counts.
- small embedding, which the paper calls "full sized embedding": embeddings as large as the hidden states, still tied
  (its 43 and 70 million parameters say so).
- variable sequence lengths: all windows of length bptt, all at the full rate.
- weight dropping, embedding dropout, AR/TAR, weight decay: set to 0.

    python benchmarks/ablation.py --data DIR                 # DIR holds wikitext-2/{train,valid,test}.txt
    python benchmarks/ablation.py --data DIR --shard 1/2 &   # two processes that share the work and the results file
    python benchmarks/ablation.py --data DIR --shard 2/2

Eight trainings of five minutes for each of three seeds, in one thread each: about two hours of CPU. A finished run is a
line of the results file, and the one at hand has checkpoints: the command can be stopped, and goes on where it was.
"""
import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch
from _common import earlier, first_tokens, machine, needed, read_results, shard, spread, table, write_result

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.stream import LMDataLoader
from awdtext.text_learner import language_model_learner
from awdtext.training.callback import Callback
from awdtext.training.monitors import KeepBest
from awdtext.training.optim import SGD
from awdtext.training.rnn import NTASGD, nonmonotone

results_file = Path(__file__).parent / 'results' / 'ablation.jsonl'
sizes_and_dropouts = dict(emb_sz=200, n_hid=600, n_layers=2, output_p=.4, hidden_p=.25, input_p=.4, embed_p=.1,
                          weight_p=.5)
full = {'tokens': [30_000, 10_000, 30_000], 'min_freq': 3, **sizes_and_dropouts, 'alpha': 2., 'beta': 1., 'wd': 1.2e-5,
        'lr': 30., 'bs': 20, 'bptt': 35, 'random_bptt': True, 'averaging': True, 'epochs': [60, 12],
        'precision': 'bf16'}
changes = {  # row -> what it takes away; 'fine-tuning' comes out of the full run
    'AWD-LSTM': {},
    'NT-ASGD': {'averaging': False},
    'variable sequence lengths': {'random_bptt': False},
    'embedding dropout': {'embed_p': 0.},
    'weight decay': {'wd': 0.},
    'AR/TAR': {'alpha': 0., 'beta': 0.},
    'small embedding': {'emb_sz': None},   # as `n_hid`
    'weight dropping': {'weight_p': 0.},
}
paper = {  # Table 4: test perplexity on Penn Treebank and WikiText-2
    'AWD-LSTM': (57.3, 65.8), 'fine-tuning': (58.8, 66.0), 'NT-ASGD': (63.7, 69.7),
    'variable sequence lengths': (58.9, 66.2), 'embedding dropout': (62.7, 68.1), 'weight decay': (61.0, 68.7),
    'AR/TAR': (60.3, 70.1), 'small embedding': (65.6, 70.7), 'weight dropping': (68.9, 74.9),
}


class HalveRate(Callback):
    "Halves the rate whenever the trigger of NT-ASGD would fire, and begins to watch anew."
    def __init__(self): self.logs = []

    def after_epoch(self, learn):
        "Look at the validation loss."
        value = learn.valid_figures['valid_loss']
        if nonmonotone(self.logs, value):
            self.logs = []
            for group in learn.opt.param_groups: group['lr'] /= 2
        self.logs.append(value)

    def state_dict(self): return {'logs': self.logs}
    def load_state_dict(self, state): self.logs = list(state['logs'])


def learner(data, seed, s):
    "The learner of a run with the settings `s`."
    train,valid,test = (first_tokens(data / f'wikitext-2/{part}.txt', n)
                        for part, n in zip(('train', 'valid', 'test'), s['tokens']))
    seed_all(seed)
    dls = TextDataLoaders.from_tokens([train], [valid], [test], min_freq=s['min_freq'], bs=s['bs'], val_bs=10,
                                      seq_len=s['bptt'], seed=seed, device='cpu')
    if not s['random_bptt']:               # `shuffle` leaves out the rest; of one document the order stays
        dls.train = LMDataLoader(dls.train.corpus, s['bs'], s['bptt'], shuffle=True, seed=seed)
    config = {name: s[name] for name in sizes_and_dropouts}
    return language_model_learner(dls, config=config, opt_func=SGD, wd=s['wd'], alpha=s['alpha'], beta=s['beta'],
                                  precision=s['precision'])


def figures(learn):
    "Exact perplexities, but for the training text, which is read in ten streams."
    if learn.interrupted: raise KeyboardInterrupt
    return {**{part: learn.evaluate(part, bs=10 if part == 'train' else 1).perplexity
               for part in ('valid', 'test', 'train')},
            'epochs': len(learn.record), 'averaging_from': learn.recorder.averaging_from,
            'vocabulary': len(learn.dls.vocab), 'seconds': sum(row['time'] for row in learn.record),
            'machine': machine()}


def train_without_averaging(learn, s, folder):
    "Plain SGD for as many epochs as both stages have."
    best = KeepBest()
    learn.remove_cb(NTASGD).fit(sum(s['epochs']), s['lr'], cbs=[HalveRate(), best], checkpoint=folder)
    if not learn.interrupted: best.restore(learn)


def finish(args, run):
    "Train, measure, and write down; of the full run also what it is before its second stage."
    s,folder = run['settings'], args.work / f"{run['row'].replace('/', '-')}-{run['seed']}"
    learn = learner(args.data, run['seed'], s)
    if s['averaging']:
        half = {**run, 'row': 'fine-tuning'}
        if run['row'] == 'AWD-LSTM' and not earlier(read_results(args.results), half):
            learn.fit_ntasgd(s['epochs'][0], 0, s['lr'], checkpoint=folder)
            write_result(args.results, {**half, **figures(learn)})
        learn.fit_ntasgd(*s['epochs'], s['lr'], checkpoint=folder)
    else: train_without_averaging(learn, s, folder)
    write_result(args.results, {**run, **figures(learn)})
    shutil.rmtree(folder)


def settings(row, changed=None):
    "Those of a row; `changed` ones are for tests."
    s = {**full, **(changed or {})}
    s.update(changes.get(row, {}))
    return {**s, 'emb_sz': s['emb_sz'] or s['n_hid']}


def planned(args):
    "All trainings, seed after seed, or this process's share of them."
    runs = [{'row': row, 'seed': seed, 'settings': settings(row, args.settings)}
            for seed in args.seeds for row in changes]
    first,n = args.shard
    return runs[first - 1::n]


def verdict(values):
    "Whether taking it away did harm, as it did in the paper: two standard errors decide."
    if len(values) < 2: return '-'
    error = stdev(values) / len(values)**.5
    return 'agrees' if mean(values) > 2 * error else 'the reverse' if mean(values) < -2 * error else 'within the noise'


def report(results, args):
    "The table: differences are taken seed by seed, in percent of the full model's test perplexity."
    done = {row: {seed: r for seed in args.seeds
                  if (r := earlier(results, {'row': row, 'seed': seed, 'settings': settings(row, args.settings)}))}
            for row in paper}
    whole,lines = done['AWD-LSTM'], []
    for row, runs in done.items():
        more = [100 * (r['test'] / whole[seed]['test'] - 1) for seed, r in runs.items() if seed in whole]
        published = [f'{100 * (p / q - 1):+.1f}' for p, q in zip(paper[row], paper['AWD-LSTM'])]
        is_full = row == 'AWD-LSTM'
        lines.append([row if is_full else f'– {row}', len(runs),
                      *(spread([r[part] for r in runs.values()]) for part in ('train', 'valid', 'test')),
                      *(['', '', '', ''] if is_full else [spread(more, sign='+'), *published, verdict(more)])])
    return table(['', 'runs', 'training perplexity', 'validation', 'test', 'test, % more than in full',
                  'paper, PTB', 'paper, WT2', 'worse without it?'], lines)


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds wikitext-2')
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    p.add_argument('--shard', type=shard, default=(1, 1), metavar='I/N', help='do the I-th part of N')
    p.add_argument('--results', type=Path, default=results_file)
    p.add_argument('--work', type=Path, default=Path(tempfile.gettempdir()) / 'awdtext_ablation',
                   help='folder for checkpoints of runs that are not finished')
    p.add_argument('--settings', type=json.loads, default={}, help=argparse.SUPPRESS)
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    needed(args.data, *(f'wikitext-2/{part}.txt' for part in ('train', 'valid', 'test')))
    torch.set_num_threads(1)
    for run in planned(args):
        if earlier(read_results(args.results), run): continue
        print(f"\n{run['row']}, seed {run['seed']}", flush=True)
        finish(args, run)
    print('\n' + report(read_results(args.results), args))


if __name__ == '__main__': main(sys.argv[1:])
