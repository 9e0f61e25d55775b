"""A language model of awdtext and of fastai 2.8.12, trained alike and judged by one exact measure.

The first 500,000 training tokens of WikiText-2, split at blanks, `<eos>` at the end of each line; the vocabulary is
that of these tokens. Both libraries get the same ids, sizes 200/600/3, bs 32, bptt 70, one epoch in float32 on the
CPU, the dropouts of fastai's `awd_lstm_lm_config`, Adam (betas .9 and .99, eps 1e-5, decoupled weight decay .01) in
one cycle (momentum .8, .7, .8) with the highest rate 5e-3, gradients clipped at .25, AR 2 and TAR 1. What differs are
the libraries themselves: awdtext draws the length of each window and scales the rate by it (both are part of the
AWD-LSTM), fastai does neither; fastai leaves the decoder's bias out of the weight decay, awdtext does not. fastai's
weights are loaded into awdtext's model, where they must give fastai's own loss of a batch; then `evaluate_lm` reads
all of the validation text in one stream with either model. The last row is what `learn.fit(3)` does when it is told
nothing.

    python benchmarks/quality_lm.py --data DIR --fastai-python PYTHON     # DIR holds wikitext-2/{train,valid}.txt

Each finished run is a line of the results file: the command can be stopped, and goes on where it was.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter, process_time

import torch
from _common import earlier, first_tokens, machine, needed, read_results, spread, table, write_result

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.vocab import make_vocab
from awdtext.lm.evaluate import evaluate_lm
from awdtext.models.language_model import get_language_model
from awdtext.text_learner import language_model_learner
from awdtext.training.callback import Callback
from awdtext.training.optim import Adam

results_file = Path(__file__).parent / 'results' / 'quality_lm.jsonl'
worker = Path(__file__).with_name('_fastai_lm.py')
clip = .25  # what `language_model_learner` clips at
titles = {'awdtext': 'awdtext, 1 epoch', 'fastai': 'fastai 2.8.12, 1 epoch', 'defaults': 'awdtext, `fit(3)`'}


class Stopwatch(Callback):
    "Seconds spent in training, validation left out."
    wall = cpu = 0.

    def before_train(self, learn):
        "Start."
        self.since = perf_counter(), process_time()

    def after_train(self, learn):
        "Stop."
        self.wall += perf_counter() - self.since[0]
        self.cpu += process_time() - self.since[1]


def read(data, n_tokens):
    "Token lists of both parts, and the vocabulary; `xxpad` has id 1, which fastai's configuration takes for granted."
    train,valid = first_tokens(data / 'wikitext-2/train.txt', n_tokens), first_tokens(data / 'wikitext-2/valid.txt')
    return train, valid, make_vocab(Counter(train), min_freq=1, max_vocab=None, special_toks=['<unk>', 'xxpad'])


def loaders(args, run):
    train,valid,vocab = read(args.data, run['n_tokens'])
    return TextDataLoaders.from_tokens([train], [valid], vocab=vocab, bs=run['bs'], seq_len=run['bptt'],
                                       seed=run['seed'], device='cpu')


def train_awdtext(args, run, file):
    "Train and leave the weights in `file`."
    seed_all(run['seed'])
    watch,defaults = Stopwatch(), run['name'] == 'defaults'
    options = {} if defaults else {'opt_func': Adam, 'wd': .01}
    learn = language_model_learner(loaders(args, run), config=run['sizes'], cbs=watch, **options)
    if defaults: learn.fit(run['n_epoch'])
    else: learn.fit_one_cycle(run['n_epoch'], run['lr'])
    if learn.interrupted: raise KeyboardInterrupt
    with learn.averaged():
        torch.save({'weights': learn.model.state_dict(), 'seconds': watch.wall, 'cpu_seconds': watch.cpu,
                    'own_loss': learn.record[-1]['valid_loss']}, file)


def train_fastai(args, run, file):
    "The same in fastai's environment."
    train,valid,vocab = read(args.data, run['n_tokens'])
    given = file.with_suffix('.in')
    torch.save({'train': vocab.encode(train), 'valid': vocab.encode(valid), 'vocabulary': len(vocab), 'clip': clip,
                'threads': torch.get_num_threads(),
                **{key: run[key] for key in ('seed', 'sizes', 'bs', 'bptt', 'n_epoch', 'lr')}}, given)
    done = subprocess.run([args.fastai_python, worker, given, file])
    given.unlink()
    if done.returncode: sys.exit(f"fastai's half has failed: does {args.fastai_python} have fastai 2.8.12?")


def from_fastai(weights, n_layers):
    "fastai's weights under awdtext's names. The decoder shares the embedding's; what fastai keeps twice is left out."
    ours = {'encoder.embedding.emb.weight': weights['0.encoder.weight'], 'decoder.bias': weights['1.decoder.bias']}
    for i in range(n_layers):
        ours[f'encoder.rnns.{i}.weight_hh_l0'] = weights[f'0.rnns.{i}.weight_hh_l0_raw']
        for name in ('weight_ih_l0', 'bias_ih_l0', 'bias_hh_l0'):
            ours[f'encoder.rnns.{i}.{name}'] = weights[f'0.rnns.{i}.module.{name}']
    return ours


def check_loss(model, check):
    "Stop unless the model's loss of a batch is what fastai says of it."
    with torch.no_grad(): loss = float(model.eval().loss(model(check['x']).dropped, check['y']))
    if abs(loss - check['loss']) > 1e-4:
        sys.exit(f"fastai's weights give the loss {loss:.5f} here and {check['loss']:.5f} there: not the same model.")


def measure(args, run, trained):
    "The exact perplexity of trained weights."
    _,valid,vocab = read(args.data, run['n_tokens'])
    weights,is_fastai = trained['weights'], run['name'] == 'fastai'
    model = get_language_model(len(vocab), {**run['sizes'], 'pad_token': vocab.pad_idx})
    model.load_state_dict(from_fastai(weights, run['sizes']['n_layers']) if is_fastai else weights)
    if is_fastai: check_loss(model, trained['check'])
    score = evaluate_lm(model, vocab.encode(valid), bs=1)
    return {'perplexity': score.perplexity, 'n_valid': score.n_tokens, 'vocabulary': len(vocab),
            **{key: trained[key] for key in ('own_loss', 'seconds', 'cpu_seconds')}}


def finish(args, run):
    "Train, unless a stopped command has done so already, then measure."
    name = '-'.join(str(v) for k, v in run.items() if k != 'sizes') + '-' + '-'.join(map(str, run['sizes'].values()))
    file,part = args.work / f'{name}.pt', args.work / f'{name}.part'
    if not file.exists():
        (train_fastai if run['name'] == 'fastai' else train_awdtext)(args, run, part)
        part.rename(file)
    write_result(args.results, {**run, **measure(args, run, torch.load(file, weights_only=True)), 'machine': machine()})
    file.unlink()


def planned(args):
    "All runs, pair after pair: who comes first changes from seed to seed."
    sizes = dict(zip(('emb_sz', 'n_hid', 'n_layers'), args.sizes))
    pairs = [(name, seed) for seed in args.seeds for name in (('awdtext', 'fastai'), ('fastai', 'awdtext'))[seed % 2]]
    pairs += [('defaults', seed) for seed in args.seeds[:1]]
    return [{'name': name, 'seed': seed, 'n_tokens': args.tokens, 'sizes': sizes, 'bs': args.bs, 'bptt': args.bptt,
             'n_epoch': 3 if name == 'defaults' else 1,
             'lr': None if name == 'defaults' else args.lr}
            for name, seed in pairs]


def report(results, plan):
    "The table of those runs of `plan` that are done."
    rows = []
    for name, title in titles.items():
        done = [r for run in plan if run['name'] == name and (r := earlier(results, run))]
        rows.append([title, len(done), *(f"{r['perplexity']:.1f}" for r in done), *['-'] * (width(plan) - len(done)),
                     *(spread([r[key] for r in done], n) for key, n in (('perplexity', 1), ('cpu_seconds', 0))),
                     spread([torch.tensor(r['own_loss']).exp().item() for r in done])])
    seeds = [f'run {i + 1}' for i in range(width(plan))]
    return table(['', 'runs', *seeds, 'exact validation perplexity, mean', 'seconds of training',
                  "the library's own validation perplexity"], rows)


def width(plan): return len({run['seed'] for run in plan})


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds wikitext-2')
    p.add_argument('--fastai-python', default=os.environ.get('AWDTEXT_FASTAI_PYTHON'),
                   help='python of an environment with fastai 2.8.12; default: $AWDTEXT_FASTAI_PYTHON')
    p.add_argument('--only', nargs='*', default=list(titles), choices=list(titles), help='some of the rows')
    p.add_argument('--tokens', type=int, default=500_000, help='training tokens')
    p.add_argument('--full', action='store_const', dest='tokens', const=None, help='all training tokens')
    p.add_argument('--lr', type=float, default=5e-3, help='highest rate of both')
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    p.add_argument('--results', type=Path, default=results_file)
    p.add_argument('--work', type=Path, default=Path(tempfile.gettempdir()) / 'awdtext_quality_lm',
                   help='folder for weights of a run that is not finished')
    p.add_argument('--fresh', action='store_true', help='ignore what earlier commands have done')
    p.add_argument('--bs', type=int, default=32, help=argparse.SUPPRESS)
    p.add_argument('--bptt', type=int, default=70, help=argparse.SUPPRESS)
    p.add_argument('--sizes', nargs=3, type=int, default=[200, 600, 3], help=argparse.SUPPRESS)
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    plan = planned(args)
    needed(args.data, 'wikitext-2/train.txt', 'wikitext-2/valid.txt')
    if 'fastai' in args.only and not args.fastai_python:
        sys.exit('fastai is missing: give --fastai-python (see benchmarks/README.md), or --only awdtext defaults.')
    args.work.mkdir(parents=True, exist_ok=True)
    if args.fresh: [file.unlink() for file in args.work.glob('*.pt')]
    skip = len(read_results(args.results)) if args.fresh else 0
    for run in plan:
        if run['name'] not in args.only or earlier(read_results(args.results)[skip:], run): continue
        print('\n' + ', '.join(f'{key} {value}' for key, value in run.items()), flush=True)
        finish(args, run)
        print('\n' + report(read_results(args.results)[skip:], plan), flush=True)
    print('\n' + report(read_results(args.results)[skip:], plan))


if __name__ == '__main__': main()
