"""Questions in six classes (TREC-6): a language model of the questions alone and its classifier, beside TF-IDF.

Nothing but the 5,452 training questions is read: first by a language model, without labels, then by a classifier on its
encoder. The peer is scikit-learn's logistic regression on TF-IDF of words and pairs of words (sublinear). What can be
chosen (sizes and passes here, C of the peer) was chosen on 800 of the training questions, split off at random:

    python benchmarks/quality_trec.py --data DIR         # DIR holds trec/{train,test}.csv: 800 training questions judge
    python benchmarks/quality_trec.py --data DIR --test  # all training questions train, the 500 test questions judge

Each finished seed is a line of the results file: the command can be stopped, and goes on where it was.
"""
import argparse
import tempfile
from pathlib import Path
from time import process_time

import pandas as pd
from _common import earlier, machine, needed, read_results, spread, table, write_result

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import language_model_learner, text_classifier_learner

results_file = Path(__file__).parent / 'results' / 'quality_trec.jsonl'


def parts(data, test, n_valid):
    "Questions that train and questions that judge."
    train = pd.read_csv(data / 'trec/train.csv')
    if test: return train, pd.read_csv(data / 'trec/test.csv')
    train = train.sample(frac=1, random_state=0)
    return train[n_valid:], train[:n_valid]


def tfidf_accuracy(train, unseen, C):
    "The peer."
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r'\S+')
    peer = make_pipeline(tfidf, LogisticRegression(C=C, max_iter=1000))
    return float(peer.fit(train['text'], train['label']).score(unseen['text'], unseen['label']))


def language_model(args, texts, seed, folder):
    "An encoder that has read the questions, in a file, and its vocabulary."
    dls = TextDataLoaders.from_texts(texts, valid=texts[:50], is_lm=True, bs=32, seq_len=24, min_freq=2, seed=seed,
                                     n_workers=1, device='cpu')
    dls.valid = None
    config = dict(zip(('emb_sz', 'n_hid', 'n_layers'), args.sizes))
    learn = language_model_learner(dls, config=config, drop_mult=args.lm_drop_mult)
    learn.fit_one_cycle(args.lm_epochs, args.lm_lr)
    if learn.interrupted: raise KeyboardInterrupt
    learn.save_encoder((folder / 'encoder').resolve())
    return dls.vocab


def accuracy(args, train, unseen, seed):
    "The classifier on its language model; the questions that judge are looked at once, at the end."
    seed_all(seed)
    with tempfile.TemporaryDirectory() as folder:
        vocab = language_model(args, train['text'].tolist(), seed, Path(folder))
        dls = TextDataLoaders.from_texts(
            train['text'].tolist(), train['label'].tolist(), valid=unseen['text'].tolist(),
            valid_labels=unseen['label'].tolist(), text_vocab=vocab, bs=64, seed=seed, n_workers=1, device='cpu')
        judges,dls.valid = dls.valid, None
        learn = text_classifier_learner(dls, pretrained=Path(folder).resolve() / 'encoder', drop_mult=args.drop_mult)
    learn.fit_one_cycle(1, args.lr)
    learn.unfreeze().fit_one_cycle(args.epochs, slice(args.lr / 2.6**3, args.lr))
    if learn.interrupted: raise KeyboardInterrupt
    return learn.validate_figures(judges)['accuracy']


def measure(args, run):
    "A seed."
    train,unseen = parts(args.data, args.test, args.n_valid)
    start = process_time()
    ours = accuracy(args, train, unseen, run['seed'])
    spent = process_time() - start
    return {**run, 'accuracy': ours, 'tfidf': tfidf_accuracy(train, unseen, args.C), 'cpu_minutes': spent / 60,
            'n': len(unseen), 'machine': machine()}


def report(results):
    "Errors, in percent."
    if not results: return ''
    n,part = results[-1]['n'], results[-1]['part']
    rows = [[f"seed {r['seed']}", f"{100 * (1 - r['accuracy']):.1f}", f"{100 * (1 - r['tfidf']):.1f}",
             f"{r['cpu_minutes']:.1f}"] for r in results]
    columns = [[100 * (1 - r[key]) for r in results] for key in ('accuracy', 'tfidf')]
    rows.append(['mean', *map(spread, columns), spread([r['cpu_minutes'] for r in results])])
    return table([f'error in percent, {n} {part} questions', 'awdtext', 'TF-IDF + logistic regression',
                  'minutes of CPU (awdtext)'], rows)


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds trec')
    p.add_argument('--test', action='store_true', help='the test questions judge')
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    p.add_argument('--results', type=Path, default=results_file)
    for name, value in settings.items():
        p.add_argument(f'--{name}'.replace('_', '-'), type=type(value), default=value, help=argparse.SUPPRESS)
    p.add_argument('--sizes', nargs=3, type=int, default=[200, 300, 1], help=argparse.SUPPRESS)
    return p.parse_args(argv)


settings = {'lm_epochs': 15, 'lm_lr': 5e-3, 'lm_drop_mult': .5, 'epochs': 15, 'lr': 1e-2, 'drop_mult': .5, 'C': 100.,
            'n_valid': 800}


def main(argv=None):
    args = parse(argv)
    needed(args.data, 'trec/train.csv', 'trec/test.csv')
    shared = {'part': 'test' if args.test else 'validation', 'sizes': args.sizes,
              **{name: getattr(args, name) for name in settings}}
    plan = [{'seed': seed, **shared} for seed in args.seeds]
    for run in plan:
        if not earlier(read_results(args.results), run): write_result(args.results, measure(args, run))
    print('\n' + report([earlier(read_results(args.results), run) for run in plan]))


if __name__ == '__main__': main()
