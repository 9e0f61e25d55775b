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


@pytest.mark.parametrize('n_known', [3, 9, 11, 12, 13, 30])
def test_alike_by_unknown_words_needs_ten_certain_shingles(n_known):
    known = [f'w{i}' for i in range(n_known)]
    corpus,vocab = make_corpus([[*known, 'zebra'], [*known, 'yak']], min_freq=2, special_toks=['xxunk'])
    parts = corpus.select([0]), corpus.select([1])
    assert near_duplicates(*parts)[0].similarity == 1, "as any other word"
    found = near_duplicates(*parts, unk_idx=vocab.unk_idx)
    assert len(found) == (n_known - 2 >= 10)


def test_where_no_unknown_word_is_shared_nothing_changes():
    train,valid = texts(100, random.Random(3), [f'w{i}' for i in range(50)])
    corpora,vocab = make_corpus([*train, ['zebra']], min_freq=1, special_toks=['xxunk'])
    found = [near_duplicates(corpora, make_corpus(valid, vocab)[0], .3, unk_idx=i) for i in (None, vocab.unk_idx)]
    assert found[0] == found[1] == slow([*train, ['zebra']], valid, .3)
