"Near duplicates: the fast join finds what comparing all pairs finds, on texts with every kind of copy."
import random

import pytest

from awdtext.data.corpus import make_corpus
from awdtext.duplicates import Duplicate, near_duplicates


def grams(doc, n=3): return {tuple(doc[i:i + n]) for i in range(max(len(doc) - n + 1, 1))}


def slow(train, valid, threshold):
    "All pairs, with python's sets of tuples."
    found = []
    for i, a in enumerate(valid):
        alike = [(len(grams(a) & grams(b)) / len(grams(a) | grams(b)), -j) for j, b in enumerate(train) if a and b]
        best,j = max(alike, default=(0, 0)) if a else (0, 0)
        if best >= threshold: found.append(Duplicate(-j, i, best))
    return sorted(found, key=lambda d: (-d.similarity, d.valid))


def texts(n, rng, words):
    def doc(): return [rng.choice(words) for _ in range(rng.choice([1, 2, 3, 5, 20, 60]))]
    def edit(text):
        text = list(text)
        for _ in range(rng.choice([0, 0, 1, 3, 8])): text[rng.randrange(len(text))] = rng.choice(words)
        return text[rng.choice([0, 0, 1]):] or text
    train = [doc() for _ in range(n)]
    return train, [edit(rng.choice(train)) if rng.random() < .5 else doc() for _ in range(n)]


@pytest.mark.parametrize('threshold', [.2, .5, .8, 1.])
@pytest.mark.parametrize('n_words', [4, 50, 5000])
def test_the_join_finds_what_all_pairs_find(threshold, n_words):
    train,valid = texts(120, random.Random(n_words), [f'w{i}' for i in range(n_words)])
    train[7],valid[3],valid[4] = [], [], train[9]
    corpora,vocab = make_corpus(train + valid, min_freq=1)
    found = near_duplicates(corpora.select(range(120)), corpora.select(range(120, 240)), threshold)
    assert found == slow(train, valid, threshold) and len(found) > 5


def test_ten_thousand_copies_are_one_document():
    docs = [['thank', 'you', '.']] * 10_000
    corpus,_ = make_corpus(docs, min_freq=1)
    found = near_duplicates(corpus, corpus)
    assert len(found) == 10_000 and {d.train for d in found} == {0}


def test_unknown_words_count_as_one_word():
    corpus,_ = make_corpus([['a', 'b', 'zebra', 'c'], ['a', 'b', 'yak', 'c']], min_freq=2, max_vocab=None,
                           special_toks=['xxunk'])
    assert near_duplicates(corpus.select([0]), corpus.select([1]))[0].similarity == 1
