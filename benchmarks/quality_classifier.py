"""A classifier of film reviews from 500 labels: what a language model adds that has read for an hour, beside TF-IDF.

A language model is trained on IMDb reviews, the unlabelled ones and those of the training part without their labels,
for 60 minutes of CPU: some steps on all of them, of a model that is thrown away, tell how many reviews it can read in
that time, and how often. Then 500 labelled reviews are drawn five times, and each draw trains a classifier on the
language model's encoder (ULMFiT: the head alone, then one group of layers more, then all), a linear probe of the
encoder as it is, and, as the peer, scikit-learn's logistic regression (C = 10) on TF-IDF of words and pairs of words
(sublinear). All are judged by the same 2,500 labelled reviews, which are in no draw and were not read by the language
model; so is the mean of classifier and probe, made equally sure. Then pseudo-labels: that mean labels the 4,000 of
10,000 other reviews of which it is most certain, a second classifier learns from them, too, and its mean with the probe
is the answer. TF-IDF does the same with its own.

    python benchmarks/quality_classifier.py --data DIR     # DIR holds imdb/{train,unsup}.csv.gz; in bfloat16
    python benchmarks/quality_classifier.py --data DIR --labels 22500 --draws 1 --pseudo-labels 0  # all labels
    python benchmarks/quality_classifier.py --data DIR --lm-minutes 20 --draws 3 --pseudo-labels 0

What was chosen, and by what: the language model's size (200/600, two layers) before anything was measured, so that an
hour is worth two passes; its batches of 32 rows by short runs as in `rates.py`, one seed, which look at no label, and
half of the rate that was best there, as this run is longer (earlier it had 64 rows and rates up to 5e-3); the
classifier's steps and dropouts by one draw that is none of these, on 2,500 other labelled reviews (0.822 with that
earlier language model; with the dropouts times .5 0.816); the second classifier's, and the probe's penalty, by two
draws on those reviews; the mean of classifier and probe, and that it gives the labels, by draws on again other ones.
What is done with more labels than 5,000 was fixed before it was run.
Each finished part is a line of the results file: the command can be stopped, and goes on where it was, also within the
language model.
"""
import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from statistics import mean
from time import process_time
from types import SimpleNamespace

import pandas as pd
import torch
from _common import earlier, machine, needed, read_results, table, write_result

from awdtext.core import seed_all
from awdtext.data.batches import Categorize
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import SubwordTokenizer, Tokenizer
from awdtext.ensemble import Ensemble
from awdtext.pseudo_labels import pseudo_label
from awdtext.text_learner import language_model_learner, linear_probe, text_classifier_learner
from awdtext.training.callback import Callback, CancelFitException
from awdtext.training.checkpoint import read_bundle
from awdtext.ulmfit import tfidf_classifier

results_file = Path(__file__).parent / 'results' / 'quality_classifier.jsonl'
seed = 42  # of everything that is not a draw
recipe = {'steps': [(-1, 2, 1e-2), (-2, 2, 1e-2), (0, 8, 4e-3)], 'bs': 16, 'drop_mult': .1}
second_recipe = {'steps': [(-1, 1, 1e-2), (-2, 1, 1e-2), (0, 2, 4e-3)], 'bs': 32, 'drop_mult': .1}
recipe_of_many = {'steps': [(-1, 1, 1e-2), (0, 3, 4e-3)], 'bs': 32, 'drop_mult': .3}
n_pool = 10_000       # reviews of which the most certain get pseudo-labels
n_balance = 1000      # of them tell how sure a classifier is


class Speed(Callback):
    """Tokens per second of CPU over some steps; then the fit ends.

    The first steps do not count: a kernel is built for each new length of window.
    """
    def __init__(self, warm, steps):
        self.warm,self.steps,self.tokens,self.since,self.value = warm, steps, 0, None, None

    def before_batch(self, learn):
        "Start the clock when the first steps are over."
        if learn.iter == self.warm: self.since = process_time()
        if learn.iter >= self.warm: self.tokens += learn.x.numel()

    def after_batch(self, learn):
        "Stop after the last step."
        if learn.iter + 1 < self.warm + self.steps: return
        self.value = self.tokens / (process_time() - self.since)
        raise CancelFitException

    def after_fit(self, learn):
        "Leave, where there were fewer steps."
        if self.value is None: sys.exit(f'{self.warm + self.steps} steps are needed to tell the speed: give more text.')


def lm_learner(args, texts, valid, seed, cbs=None):
    "Loaders and learner of the language model."
    tok_tfm = SubwordTokenizer(vocab_sz=args.max_vocab) if args.tokens == 'subwords' else None
    dls = TextDataLoaders.from_texts(texts, valid=valid, is_lm=True, bs=args.bs, max_vocab=args.max_vocab, seed=seed,
                                     tok_tfm=tok_tfm, n_workers=1, device='cpu')
    config = dict(zip(('emb_sz', 'n_hid', 'n_layers'), args.sizes))
    return language_model_learner(dls, config=config, drop_mult=.1, precision=args.precision, path=args.work, cbs=cbs)


def affordable(args, texts):
    "How many of `texts` can be read, and how often; told by steps with their whole vocabulary."
    watch = Speed(warm=args.steps // 2, steps=args.steps)
    learn = lm_learner(args, texts, texts[:2], seed, watch)
    learn.fit(1, 1e-3)
    tokens_each = learn.dls.train.corpus.n_tokens / len(texts)
    reviews = .95 * args.lm_minutes * 60 * watch.value / tokens_each             # the rest is for words and checkpoints
    n_epoch = max(1, math.ceil(reviews / len(texts)))
    return max(args.bs, int(reviews / n_epoch)), n_epoch, watch.value


class Clock(Callback):
    "Seconds of CPU of a run, also of one that was stopped and goes on."
    order = 90
    def __init__(self): self.seconds,self.since = 0., process_time()
    def state_dict(self): return {'seconds': self.seconds + process_time() - self.since}
    def load_state_dict(self, state): self.seconds = state['seconds']


def read_texts(args):
    "Unlabelled reviews and those of the training part in random order, without labels; the first are for validation."
    unsup,train = pd.read_csv(args.data / 'imdb/unsup.csv.gz'), reviews(args.data)[args.held_out:]
    texts = pd.concat([unsup['text'], train['text']]).sample(frac=1, random_state=seed).tolist()
    n_valid = min(400, len(texts) // 10)
    return texts[n_valid:], texts[:n_valid]


def reading_plan(args, encoder, texts):
    "How much is read; measured once, and kept beside the encoder, since another measurement would say something else."
    file = encoder.with_suffix('.json')
    if not file.exists():
        seed_all(seed)
        n,n_epoch,speed = affordable(args, texts)
        file.write_text(json.dumps({'reviews': n, 'n_epoch': n_epoch, 'tokens_per_second': speed}))
    return json.loads(file.read_text())


def train_lm(args, run, encoder):
    "Train the language model, and save its encoder. A command that was stopped goes on."
    began,clock = process_time(), Clock()
    texts,valid = read_texts(args)
    plan = reading_plan(args, encoder, texts)
    seed_all(seed)
    learn = lm_learner(args, texts[:plan['reviews']], valid, seed, clock)
    print(f"{learn.dls.summary()}; {plan}", flush=True)
    words_read,clock.since = process_time(), process_time()
    learn.fit_one_cycle(plan['n_epoch'], args.lr, checkpoint=encoder.with_suffix(''))
    if learn.interrupted: raise KeyboardInterrupt
    spent = clock.state_dict()['seconds']
    learn.save_encoder(encoder.resolve())
    score = learn.evaluate()
    bits = score.loss * score.n_tokens / math.log(2) / sum(map(len, valid))      # the unknown words are cheap in it
    return {**run, **plan, 'tokens': learn.dls.train.corpus.n_tokens, 'tokenizer_minutes': (words_read - began) / 60,
            'cpu_minutes': spent / 60, 'perplexity': score.perplexity, 'bits_per_character': bits,
            'unknown': learn.dls.unk_rate, 'machine': machine()}


def reviews(data):
    "The labelled reviews, in random order: the first are held out from all that learns."
    return pd.read_csv(data / 'imdb/train.csv.gz')[['text', 'label']].sample(frac=1, random_state=seed)


def labelled(data, draw, n_labels, n_held_out):
    "The reviews of a draw, and those that are held out from all draws."
    df = reviews(data)
    return df[n_held_out:].sample(n_labels, random_state=draw), df[:n_held_out]


def peer_of(train): return tfidf_classifier(plain(train['text']), train['label'], max_features=None)
def plain(texts): return [text.replace('<br />', ' ') for text in texts]


def tfidf_accuracy(train, valid): return float(peer_of(train).score(plain(valid['text']), valid['label']))


def tfidf_labels(train, pool, n):
    "What the peer is most certain of, as `pseudo_label` chooses it."
    peer = peer_of(train)
    probs,labeler = torch.tensor(peer.predict_proba(plain(pool))), Categorize(peer.classes_)
    part = SimpleNamespace(targets=labeler(train['label'].tolist()))
    dls = SimpleNamespace(labeler=labeler, train=part, test_dl=list)
    return pseudo_label(SimpleNamespace(dls=dls, get_preds=lambda dl: (probs, None)), pool, n)


def classifier(train, valid, encoder, draw, precision, steps, bs, drop_mult):
    "A learner by gradual unfreezing (groups that learn, epochs, highest rate), and how often it is right at the end."
    seed_all(draw)
    bundle = read_bundle(encoder, 'encoder')
    dls = TextDataLoaders.from_texts(train['text'].tolist(), train['label'].tolist(), valid=valid['text'].tolist(),
                                     valid_labels=valid['label'].tolist(), text_vocab=bundle['vocab'], bs=bs, val_bs=64,
                                     tok_tfm=Tokenizer.from_dict(bundle['tokenizer']), seed=draw, n_workers=1,
                                     device='cpu')
    unseen,dls.valid = dls.valid, None
    learn = text_classifier_learner(dls, pretrained=encoder.resolve(), drop_mult=drop_mult, precision=precision)
    for group, n_epoch, lr in steps:
        learn.freeze_to(group).fit_one_cycle(n_epoch, lr if group == -1 else slice(lr / 2.6**3, lr))
        if learn.interrupted: raise KeyboardInterrupt
    return learn, learn.validate_figures(unseen)['accuracy']


def recipe_for(train):
    "More labels need fewer passes."
    return recipe if len(train) <= 5000 else recipe_of_many


def classifier_accuracy(train, valid, encoder, draw, precision='fp32'):
    "Of a classifier that is trained as so many labels want it."
    return classifier(train, valid, encoder, draw, precision, **recipe_for(train))[1]


def with_pseudo_labels(train, found):
    "Labelled reviews, repeated so that they are a third, and the others."
    times = max(1, round(len(found.texts) / (2 * len(train))))
    return pd.concat([*[train] * times, pd.DataFrame({'text': found.texts, 'label': found.labels})])


def other_reviews(args):
    "Unlabelled ones."
    texts = pd.read_csv(args.data / 'imdb/unsup.csv.gz')['text'].sample(frac=1, random_state=seed)
    return texts[:n_pool].tolist()


def mean_of(learn, probe, pool):
    "The two as one, equally sure."
    both = Ensemble([learn, probe])
    both.balance(pool[:n_balance])
    return both


def accuracy_of(learn, valid):
    return learn.validate_figures(learn.dls.test_dl(valid['text'].tolist(), valid['label'].tolist()))['accuracy']


def probed(run, encoder, learn, valid, pool):
    "A linear probe of the labels that `learn` has, and the mean of both; their accuracy and the time they take."
    began = process_time()
    probe = linear_probe(learn.dls, encoder.resolve(), precision=run['precision'])
    linear,spent = accuracy_of(probe, valid), process_time() - began
    both = mean_of(learn, probe, pool)
    return probe, both, {'linear': linear, 'linear_minutes': spent / 60, 'mean': accuracy_of(both, valid)}


def second(args, run, encoder, train, valid, probe, both, pool):
    "A second classifier of a draw, which learns from the labels of the first and the probe; the same of the peer."
    n,began = args.pseudo_labels, process_time()
    more = with_pseudo_labels(train, pseudo_label(both, pool, n))
    learn,ours = classifier(more, valid, encoder, run['draw'], run['precision'], **second_recipe)
    mean = accuracy_of(mean_of(learn, probe, pool), valid)
    spent,peer = process_time() - began, with_pseudo_labels(train, tfidf_labels(train, pool, n))
    return {'second': ours, 'second_mean': mean, 'tfidf_second': tfidf_accuracy(peer, valid),
            'second_minutes': spent / 60}


def measure_draw(args, run, encoder):
    "All classifiers on one draw, and the time each takes; with pseudo-labels the second ones, too."
    train,valid = labelled(args.data, run['draw'], run['n_labels'], run['n_held_out'])
    times,pool = [process_time()], other_reviews(args)
    tfidf = tfidf_accuracy(train, valid)
    times.append(process_time())
    learn,ours = classifier(train, valid, encoder, run['draw'], run['precision'], **recipe_for(train))
    times.append(process_time())
    probe,both,found = probed(run, encoder, learn, valid, pool)
    more = second(args, run, encoder, train, valid, probe, both, pool) if run['pseudo_labels'] else {}
    return {**run, 'accuracy': ours, 'tfidf': tfidf, 'tfidf_minutes': (times[1] - times[0]) / 60,
            'cpu_minutes': (times[2] - times[1]) / 60, **found, **more, 'machine': machine()}


def planned(args):
    "The language model, then the draws."
    shared = {'lm_minutes': args.lm_minutes, 'sizes': args.sizes, 'bs': args.bs, 'max_vocab': args.max_vocab,
              'lr': args.lr, 'precision': args.precision}
    draws = [{'part': 'draw', 'pseudo_labels': args.pseudo_labels, 'draw': d, 'n_labels': args.labels,
              'n_held_out': args.held_out, **shared} for d in range(args.draws)]
    return [{'part': 'language model', **shared}, *draws]


columns = {'accuracy': ('fine-tuned', 3), 'linear': ('linear probe', 3), 'mean': ('mean of both', 3),
           'second': ('fine-tuned with pseudo-labels', 3), 'second_mean': ('mean of that and the probe', 3),
           'tfidf': ('TF-IDF + logistic regression', 3), 'tfidf_second': ('TF-IDF with its own pseudo-labels', 3),
           'cpu_minutes': ('minutes of CPU (fine-tuned)', 1), 'linear_minutes': ('probe', 1),
           'second_minutes': ('and for pseudo-labels', 1)}


def report(results, plan):
    "One line on the language model, and the table of the draws."
    lm,*draws = [earlier(results, run) for run in plan]
    draws = [r for r in draws if r]
    shown = {key: how for key, how in columns.items() if draws and all(key in r for r in draws)}
    rows = [[f"draw {r['draw'] + 1}", *(f'{r[key]:.{n}f}' for key, (_, n) in shown.items())] for r in draws]
    if draws: rows.append(['mean', *(f'{mean(r[key] for r in draws):.{n}f}' for key, (_, n) in shown.items())])
    line = lm and (f"Language model: {lm['reviews']:,} reviews, {lm['tokens']:,} tokens, {lm['n_epoch']} epoch(s), "
                   f"{lm['cpu_minutes']:.1f} minutes of CPU; perplexity of unread reviews {lm['perplexity']:.1f}.\n\n")
    head = f"accuracy on {plan[-1].get('n_held_out', 0):,} reviews"
    return (line or '') + table([head, *(name for name, _ in shown.values())], rows)


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds imdb')
    p.add_argument('--lm-minutes', type=float, default=60., help='CPU minutes for the language model')
    p.add_argument('--draws', type=int, default=5, help='how often labels are drawn')
    p.add_argument('--labels', type=int, default=500, help='labelled reviews of a draw')
    p.add_argument('--pseudo-labels', type=int, default=4000, help='so many for each draw; 0: none')
    p.add_argument('--results', type=Path, default=results_file)
    p.add_argument('--work', type=Path, default=Path(tempfile.gettempdir()) / 'awdtext_quality_classifier',
                   help="folder of the language model's encoder")
    p.add_argument('--fresh', action='store_true', help='ignore what earlier commands have done')
    for name, value in (('bs', 32), ('max-vocab', 10_000), ('steps', 120), ('held-out', 2500)):
        p.add_argument(f'--{name}', type=int, default=value, help=argparse.SUPPRESS)
    p.add_argument('--lr', type=float, default=1e-2, help=argparse.SUPPRESS)
    p.add_argument('--sizes', nargs=3, type=int, default=[200, 600, 2], help=argparse.SUPPRESS)
    p.add_argument('--precision', default='bf16', help="'fp32' or 'bf16'")
    p.add_argument('--tokens', default='words', help=argparse.SUPPRESS)  # or 'subwords', for presets.py
    return p.parse_args(argv)


def fresh_from(results, run):
    "The place of the latest language model: draws belong to the one they were trained on."
    return max((i for i, r in enumerate(results) if earlier([r], run)), default=0)


def main(argv=None):
    args = parse(argv)
    needed(args.data, 'imdb/train.csv.gz', 'imdb/unsup.csv.gz')
    args.work.mkdir(parents=True, exist_ok=True)
    lm,*draws = plan = planned(args)
    name = '-'.join(map(str, [args.lm_minutes, *args.sizes, args.bs, args.max_vocab, args.lr, args.precision]))
    encoder = (args.work / f'{name}.safetensors').resolve()
    if args.fresh or not earlier(read_results(args.results), lm) or not encoder.exists():
        write_result(args.results, train_lm(args, lm, encoder))
    skip = fresh_from(read_results(args.results), lm)
    for run in draws:
        if earlier(read_results(args.results)[skip:], run): continue
        print(f"\nDraw {run['draw'] + 1}", flush=True)
        write_result(args.results, measure_draw(args, run, encoder))
    print('\n' + report(read_results(args.results)[skip:], plan))


if __name__ == '__main__': main()
