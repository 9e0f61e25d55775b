"Corpora: the ids of a slow loop, in one pass, in little memory."
import pickle
import random
import tracemalloc
from collections import Counter

import pytest
import torch

from awdtext.data.corpus import Corpus, make_corpus
from awdtext.data.vocab import Vocab, make_vocab


def random_docs(seed, n=50):
    rng = random.Random(seed)
    return [[f'w{int(rng.expovariate(.05))}' for _ in range(rng.choice([0, 1, 5, 40]))] for _ in range(n)]


def as_lists(corpus): return [doc.tolist() for doc in corpus]


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('min_freq,max_vocab', [(1, 60000), (3, 60000), (2, 20)])
def test_ids_are_those_of_a_slow_loop(seed, min_freq, max_vocab):
    docs = random_docs(seed)
    corpus, vocab = make_corpus(iter(docs), min_freq=min_freq, max_vocab=max_vocab)
    slow = make_vocab(Counter(token for doc in docs for token in doc), min_freq, max_vocab)
    assert vocab == slow
    assert as_lists(corpus) == [[slow.stoi.get(token, 0) for token in doc] for doc in docs]
    assert corpus.lengths.tolist() == [len(doc) for doc in docs] and corpus.n_tokens == sum(map(len, docs))
    assert corpus.ids.dtype == torch.int32 and corpus.offsets.dtype == torch.int64


def test_given_vocabulary_is_used_as_it_is():
    vocab = Vocab(['b', '<unk>', 'a'])
    corpus, same = make_corpus([['a', 'z'], [], ['b']], vocab)
    assert same is vocab and as_lists(corpus) == [[2, 1], [], [0]]


def test_given_vocabulary_without_unknown_token():
    vocab = Vocab(['a', 'b'])
    assert as_lists(make_corpus([['a', 'b']], vocab)[0]) == [[0, 1]]
    with pytest.raises(ValueError, match="'z' is not in the vocabulary"): make_corpus([['a', 'z']], vocab)


def test_documents_are_looked_at_once():
    seen = []

    def stream():
        for i in range(5):
            seen.append(i)
            yield [str(i)]

    make_corpus(stream(), min_freq=1)
    assert seen == [0, 1, 2, 3, 4]


def test_memory_is_a_few_bytes_per_token():
    n_docs, n_tokens = 400, 1000
    stream = ([f'word-{(i * j) % 997}' for j in range(n_tokens)] for i in range(n_docs))
    tracemalloc.start()
    make_corpus(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * n_docs * n_tokens  # as strings: some 60 bytes each


def test_no_documents_make_an_empty_corpus():
    corpus, vocab = make_corpus([])
    assert (len(corpus), corpus.n_tokens, corpus.lengths.tolist(), len(vocab)) == (0, 0, [], 9)
    assert len(corpus.select([])) == len(corpus.reversed()) == 0


@pytest.mark.parametrize('docs,message', [
    (['a text'], "document 0 is str 'a text', not a list of tokens"),
    ([['a'], None], 'document 1 is NoneType'),
    ([['a'], b'bytes'], 'document 1 is bytes'),
    ([['a', 3]], 'tokens are strings, not 3'),
    ([['a', float('nan')]], 'tokens are strings, not nan'),
    ([['a'], [['a'], ['b']]], r"document 1 is \[\['a'\], \['b'\]\], whose tokens are no strings")])
def test_what_is_no_document(docs, message):
    with pytest.raises(TypeError, match=message): make_corpus(docs, Vocab(['xxunk', 'a']))


@pytest.mark.parametrize('seed', range(3))
def test_select_and_reversed_are_those_of_lists(seed):
    docs = random_docs(seed)
    corpus, _ = make_corpus(docs)
    lists, idxs = as_lists(corpus), random.Random(seed).choices(range(len(docs)), k=30)
    assert as_lists(corpus.select(idxs)) == as_lists(corpus.select(torch.tensor(idxs))) == [lists[i] for i in idxs]
    assert as_lists(corpus.reversed()) == [doc[::-1] for doc in lists]
    assert as_lists(corpus.reversed().reversed()) == lists == as_lists(corpus)
    assert as_lists(corpus.joined()) == [sum(lists, [])]


def test_index_from_the_end_and_beyond_it():
    corpus, _ = make_corpus([['a'], ['b', 'b']], min_freq=1, special_toks=())
    assert corpus[-1].tolist() == [0, 0] and corpus[-2].tolist() == [1]
    for i in (2, -3):
        with pytest.raises(IndexError, match=f'document {i} of a corpus of 2'): corpus[i]


def test_pickle():
    corpus, _ = make_corpus(random_docs(0))
    assert as_lists(pickle.loads(pickle.dumps(corpus))) == as_lists(corpus)


@pytest.mark.parametrize('ids,offsets,message', [
    (torch.tensor([1, 2]), torch.tensor([0, 2]), 'ids must be a row of int32, not torch.int64'),
    (torch.zeros(2, 2, dtype=torch.int32), torch.tensor([0, 2]), r'int32 of shape \(2, 2\)'),
    (torch.zeros(2, dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32), 'offsets must be a row of int64'),
    (torch.zeros(2, dtype=torch.int32), torch.tensor([0, 1]), 'rise from 0 to the number of ids, 2'),
    (torch.zeros(2, dtype=torch.int32), torch.tensor([0, 2, 1, 2]), 'rise from 0'),
    (torch.zeros(2, dtype=torch.int32), torch.tensor([1, 2]), 'rise from 0')])
def test_ids_and_offsets_must_fit(ids, offsets, message):
    with pytest.raises(ValueError, match=message): Corpus(ids, offsets)
