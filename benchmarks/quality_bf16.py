"""What bfloat16 and int8 cost in quality: the figures beside which those of `speed.py` count.

1. training: `small`, three epochs on the first 400,000 tokens of WikiText-2, in float32 and bfloat16, three seeds; the
   runs are those of `defaults_lm.py` (what `fit(n)` does), and those it has in its results are not repeated;
2. evaluation: one trained language model, read in float32 and in bfloat16;
3. classification: one trained classifier of reviews, asked in float32, bfloat16 and int8, and one by one;
4. curves: the losses of 200 steps, dropout on, with the same seed: the kernel in float32 beside the plain loop and
   F.cross_entropy, and the loop beside itself with its first weights changed in the last digit, which shows how much
   float noise grows in so many steps; bfloat16 beside the spread of seeds in float32. A drawing shows them.

    python benchmarks/quality_bf16.py --data DIR                # all of it: some hours
    python benchmarks/quality_bf16.py --data DIR --only curves
    python benchmarks/quality_bf16.py --data DIR --only classification --encoder FILE    # of quality_classifier.py

Each finished run is a line of the results file: the command can be stopped, and goes on where it was.
"""
import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

import defaults_lm
import quality_classifier
import torch
import torch.nn.functional as F
from _common import earlier, first_tokens, machine, needed, read_results, table, write_result
from torch import nn

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.lm.evaluate import evaluate_lm
from awdtext.models.lstm import lstm_loop
from awdtext.models.prediction import can_int8
from awdtext.text_learner import language_model_learner, load_learner, text_classifier_learner
from awdtext.training.callback import Callback, CancelFitException
from awdtext.training.checkpoint import read_bundle
from awdtext.training.precision import MixedPrecision, supported
from awdtext.training.progress import ProgressCallback

results_file = Path(__file__).parent / 'results' / 'quality_bf16.jsonl'
candidate = 'Adam, constant 5e-3'  # what `fit(n)` does
# how a classifier is asked -> precision, and whether each text alone
ways = {'fp32': ('fp32', False), 'bf16': ('bf16', False), 'int8': ('int8', False), 'bf16, one by one': ('bf16', True),
        'int8, one by one': ('int8', True)}
variants = {'fp32': 'the kernel, float32', 'loop': 'the loop, float32', 'nudged': 'the loop, last digits changed',
            'bf16': 'the kernel, bfloat16'}


# Training, and evaluation of what came of it

def training(args):
    "The runs that are missing, in the results of `defaults_lm.py`."
    if args.quick: return                                              # its sizes are not ours to choose
    for seed in args.seeds:
        for precision in ('fp32', 'bf16'):
            results = defaults_lm.of_precision(read_results(args.defaults), precision)
            if defaults_lm.done(results, candidate, args.epochs, seed): continue
            def finish(name, learn, n, seed=seed, precision=precision):
                write_result(args.defaults, {
                    'name': name, 'n_epoch': n, 'seed': seed, 'precision': precision,
                    'vocabulary': len(learn.dls.vocab),
                    'perplexity': [row['perplexity'] for row in learn.record],
                    'seconds': sum(row['time'] for row in learn.record), 'machine': machine()})
            defaults_lm.run(args.data, candidate, args.epochs, seed, precision, finish)


def training_report(args):
    "Perplexities, and the difference of each pair."
    results,rows,changes = read_results(args.defaults), [], []
    for seed in args.seeds:
        plain,half = (defaults_lm.done(defaults_lm.of_precision(results, p), candidate, args.epochs, seed)
                      for p in ('fp32', 'bf16'))
        if not (plain and half): continue
        changes.append(100 * (half / plain - 1))
        rows.append([f'seed {seed}', f'{plain:.2f}', f'{half:.2f}', f'{changes[-1]:+.2f} %'])
    if len(changes) > 1:
        error = stdev(changes) / len(changes)**.5
        rows.append(['mean', '', '', f'{mean(changes):+.2f} ± {error:.2f} % (standard error); goal: within 0.5 %'])
    return table([f'perplexity after {args.epochs} epochs, {candidate}', 'float32', 'bfloat16', 'difference'], rows)


def lm_data(args, seed, bs=64):
    tokens = first_tokens(args.data / 'wikitext-2/train.txt', args.tokens)
    valid = first_tokens(args.data / 'wikitext-2/valid.txt', args.valid_tokens)
    return TextDataLoaders.from_tokens([tokens], [valid], min_freq=3, seed=seed, bs=bs, device='cpu')


def evaluation(args):
    "Train a model once, and read the validation part in both precisions."
    run = {'part': 'evaluation', 'tokens': args.tokens, 'epochs': args.epochs, 'config': args.config}
    if earlier(read_results(args.results), run): return
    seed_all(0)
    learn = language_model_learner(lm_data(args, 0), config=args.config)
    learn.fit_one_cycle(args.epochs, 5e-3)
    if learn.interrupted: raise KeyboardInterrupt
    found = {}
    for precision in ('fp32', 'bf16'):
        with MixedPrecision(precision).context():
            found[precision] = evaluate_lm(learn.model, learn.dls.valid.corpus.ids, bs=64).perplexity
    write_result(args.results, {**run, 'perplexity': found, 'machine': machine()})


def evaluation_report(args):
    found = [r['perplexity'] for r in read_results(args.results) if r['part'] == 'evaluation'][-1:]
    rows = [[p, f'{v:.3f}', f"{100 * (v / f['fp32'] - 1):+.3f} %"] for f in found for p, v in f.items()]
    return table(['one trained model, read in', 'perplexity', 'difference (goal: within 0.5 %)'], rows)


# Classification

def train_classifier(args, file):
    "A classifier of reviews, from an encoder if there is one, written to `file`."
    seed_all(0)
    train,valid = quality_classifier.labelled(args.data, 0, args.labels, args.held_out)
    vocab = read_bundle(args.encoder, 'encoder')['vocab'] if args.encoder else None
    dls = TextDataLoaders.from_texts(train['text'].tolist(), train['label'].tolist(), valid=valid['text'].tolist(),
                                     valid_labels=valid['label'].tolist(), text_vocab=vocab, bs=16, seed=0,
                                     n_workers=1, device='cpu')
    dls.valid = None
    config = None if args.encoder else args.config
    learn = text_classifier_learner(dls, config=config, pretrained=args.encoder.resolve() if args.encoder else False)
    steps = quality_classifier.recipe['steps'] if args.encoder else [(0, args.epochs, 4e-3)]
    for group, n_epoch, lr in steps: learn.freeze_to(group).fit_one_cycle(n_epoch, lr)
    if learn.interrupted: raise KeyboardInterrupt
    learn.export(file.resolve())


def asked(learn, texts, precision, one_by_one):
    "The classes that are told in a precision; None where the machine has it not."
    if not (can_int8() if precision == 'int8' else supported(precision, learn.device)): return None
    if one_by_one: return torch.tensor([int(learn.predict(text, precision=precision)[1]) for text in texts])
    return learn.get_preds(dl=learn.dls.test_dl(texts), precision=precision)[0].argmax(1)


def classification(args):
    "Ask one trained classifier in each precision."
    run = {'part': 'classification', 'labels': args.labels, 'held_out': args.held_out,
           'encoder': args.encoder.name if args.encoder else None}
    if earlier(read_results(args.results), run): return
    file = args.work / 'classifier.safetensors'
    if args.fresh or not file.exists(): train_classifier(args, file)
    learn = load_learner(file, 'cpu')
    _,unseen = quality_classifier.labelled(args.data, 0, args.labels, args.held_out)
    targets,texts = learn.dls.labeler(unseen['label'].tolist()), unseen['text'].tolist()
    said = {how: classes for how, way in ways.items() if (classes := asked(learn, texts, *way)) is not None}
    write_result(args.results, {**run, 'machine': machine(),
                                'accuracy': {p: (s == targets).float().mean().item() for p, s in said.items()},
                                'changed': {p: int((s != said['fp32']).sum()) for p, s in said.items()}})


def classification_report(args):
    found = [r for r in read_results(args.results) if r['part'] == 'classification'][-1:]
    rows = [[p, f'{100 * a:.2f}', f"{100 * (a - r['accuracy']['fp32']):+.2f}", f"{r['changed'][p]} of {r['held_out']}"]
            for r in found for p, a in r['accuracy'].items()]
    head = ['one trained classifier, asked in', 'accuracy, %', 'points (goal: within 0.3)', 'answers changed']
    return table(head, rows)


# Curves

class Loop(nn.Module):
    "A layer's own parameters and dropped weights, in the plain loop."
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, state=None, starts=None):
        l = self.layer
        h,c = state or (x.new_zeros(len(x), l.n_hid),) * 2
        W,U,b_ih,b_hh = l.weights()
        return lstm_loop(x, h, c, W, U, b_ih + b_hh)


def by_the_book(model):
    "The loop in every layer, and torch's own cross-entropy of all logits at once."
    model.encoder.rnns = nn.ModuleList(Loop(layer) for layer in model.encoder.rnns)
    model.loss = lambda hidden, y: F.cross_entropy(model.logits(hidden).flatten(0, 1), y.flatten())


class Curve(Callback):
    "The losses of the first steps; then the fit ends."
    def __init__(self, n): self.n,self.losses = n,[]

    def after_batch(self, learn):
        "Note the loss."
        self.losses.append(learn.loss.item())
        if len(self.losses) == self.n: raise CancelFitException


def curve(args, variant, seed):
    "Losses of a variant."
    seed_all(seed)
    learn = language_model_learner(lm_data(args, seed, bs=args.bs), config=args.config, precision='bf16'
                                   if variant == 'bf16' else None).remove_cb(ProgressCallback)
    learn.dls.valid = None
    if variant in ('loop', 'nudged'): by_the_book(learn.model)
    if variant == 'nudged':
        eps,nudge = torch.finfo(torch.float32).eps, torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in learn.model.parameters(): p.mul_(1 + eps * torch.randint(-1, 2, p.shape, generator=nudge))
    seed_all(seed)                                                     # the same masks
    watch = Curve(args.steps)
    learn.fit(args.steps // len(learn.dls.train) + 2, args.lr, cbs=watch)
    return watch.losses


def curves(args):
    "The curves that are missing."
    for seed in args.seeds:
        for variant in variants:
            run = {'part': 'curves', 'variant': variant, 'seed': seed, 'steps': args.steps, 'lr': args.lr,
                   'bs': args.bs}
            if earlier(read_results(args.results), run): continue
            print(f'{variants[variant]}, seed {seed}', flush=True)
            write_result(args.results, {**run, 'losses': curve(args, variant, seed), 'machine': machine()})
    draw(found_curves(args), args.results.with_suffix('.png'))


def found_curves(args):
    "Variant -> seed -> losses."
    found = {v: {} for v in variants}
    for r in read_results(args.results):
        if r['part'] == 'curves' and r['steps'] == args.steps and r['seed'] in args.seeds:
            found[r['variant']][r['seed']] = torch.tensor(r['losses'], dtype=torch.double)
    return found


def curves_report(args):
    "The largest differences, and the ends of the curves."
    found = found_curves(args)
    if not all(len(c) == len(args.seeds) for c in found.values()): return 'curves: not all are there'
    gap = {v: max((found[v][s] - found['loop'][s]).abs().max().item() for s in args.seeds) for v in variants}
    last = {v: [c[s][-max(1, args.steps // 4):].mean().item() for s in args.seeds] for v, c in found.items()}
    spread = stdev(last['fp32']) if len(args.seeds) > 1 else float('nan')
    shift = mean(b - a for a, b in zip(last['fp32'], last['bf16']))
    rows = [[title, f'{gap[v]:.2g}', f'{mean(last[v]):.4f}'] for v, title in variants.items()]
    return table([f'{args.steps} steps, {len(args.seeds)} seeds', 'most it differs from the loop, any step',
                  'mean loss of the last quarter'], rows) + (
        f'\n\nfloat32 is float noise away if its first figure is about that of the changed last digits. bfloat16 '
        f'differs by {shift:+.4f} at the end; the seeds differ by {spread:.4f} (standard deviation).')


def draw(found, file):
    "All curves, and what separates them from the loop of the same seed."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(11, 4), layout='constrained')
    losses,gaps = fig.subplots(1, 2)
    for (v, title), colour in zip(variants.items(), ('C0', 'k', 'C7', 'C1')):
        for i, (seed, c) in enumerate(found[v].items()):
            losses.plot(c, color=colour, lw=.8, label=None if i else title)
            if v != 'loop' and seed in found['loop']:
                gap = (c - found['loop'][seed]).abs().clamp(min=1e-8)
                gaps.plot(gap, color=colour, lw=.8, label=None if i else title)
    losses.set(xlabel='step', ylabel='nats per token')
    gaps.set(xlabel='step', ylabel='differs from the loop by', yscale='log')
    fig.legend(*losses.get_legend_handles_labels(), loc='outside lower center', ncols=len(variants))
    fig.savefig(file)


parts = {'training': (training, training_report), 'evaluation': (evaluation, evaluation_report),
         'classification': (classification, classification_report), 'curves': (curves, curves_report)}


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds wikitext-2 and imdb')
    p.add_argument('--only', nargs='*', default=list(parts), choices=list(parts), help='some of the parts')
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    p.add_argument('--encoder', type=Path, help='file of an encoder for the classifier; without it there is none')
    p.add_argument('--results', type=Path, default=results_file)
    p.add_argument('--defaults', type=Path, default=defaults_lm.results_file, help='results of defaults_lm.py')
    p.add_argument('--work', type=Path, default=Path(tempfile.gettempdir()) / 'awdtext_quality_bf16',
                   help='folder of the classifier')
    p.add_argument('--fresh', action='store_true', help='train the classifier anew')
    for name, value in (('tokens', 400_000), ('valid-tokens', None), ('epochs', 3), ('steps', 200), ('bs', 32),
                        ('held-out', 2500)):
        p.add_argument(f'--{name}', type=int, default=value, help=argparse.SUPPRESS)
    p.add_argument('--labels', type=int, default=5000, help='labelled reviews that the classifier learns from')
    p.add_argument('--lr', type=float, default=2e-3, help='rate of the curves')
    p.add_argument('--quick', action='store_true', help='tiny sizes, to see that it runs')
    args = p.parse_args(argv)
    args.config = dict(emb_sz=8, n_hid=12, n_layers=2) if args.quick else 'small'
    if args.quick: vars(args).update(tokens=2000, valid_tokens=200, epochs=1, steps=4, bs=4, labels=40, held_out=20)
    return args


def main(argv=None):
    args = parse(argv)
    files = ['imdb/train.csv.gz'] if 'classification' in args.only else []
    needed(args.data, 'wikitext-2/train.txt', 'wikitext-2/valid.txt', *files)
    args.work.mkdir(parents=True, exist_ok=True)
    for part in args.only: parts[part][0](args)
    print(machine())
    for part in args.only: print('\n' + parts[part][1](args))


if __name__ == '__main__': main()
