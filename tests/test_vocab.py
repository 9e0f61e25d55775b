"Vocabularies: fastai's order, unknown tokens, what cannot be."
import pickle
import random
from collections import Counter

import pytest
import torch

from awdtext.data.tokenizer import special_tokens
from awdtext.data.vocab import Vocab, make_vocab, match_vocab


def fastai_vocab(count, min_freq=3, max_vocab=60000, special_toks=special_tokens):
    "fastai 2.8.12, text/data.py, without the fake tokens at its end."
    vocab = [o for o, c in count.most_common(max_vocab) if c >= min_freq]
    for o in reversed(special_toks):
        if o in vocab: vocab.remove(o)
        vocab.insert(0, o)
    return vocab[:max_vocab]


def random_counter(seed):
    rng = random.Random(seed)
    words = [f'w{i}' for i in range(200)] + list(special_tokens)
    return Counter(rng.choices(words, weights=[1 / (i + 1) for i in range(len(words))], k=2000))


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('min_freq,max_vocab', [(1, 60000), (3, 60000), (3, 30), (20, 12), (10**9, 60000)])
def test_order_is_fastais(seed, min_freq, max_vocab):
    count = random_counter(seed)
    assert make_vocab(count, min_freq, max_vocab).itos == fastai_vocab(count, min_freq, max_vocab)


def test_no_limit_and_no_fake_tokens():
    count = Counter({f'w{i}': 5 for i in range(71)})
    vocab = make_vocab(count, max_vocab=None)
    assert len(vocab) == 80 and not any(token.startswith('xxfake') for token in vocab.itos)


def test_a_plain_dict_will_do():
    assert make_vocab({'a': 1, 'b': 4}, 1, special_toks=()).itos == ['b', 'a']


def test_max_vocab_must_leave_room():
    with pytest.raises(ValueError, match='max_vocab=5 leaves no room: use more than 9'):
        make_vocab({'a': 9}, max_vocab=5)
    with pytest.raises(ValueError, match='max_vocab=0 leaves no room'):
        make_vocab({'a': 9}, max_vocab=0, special_toks=())


@pytest.mark.parametrize('unk', ['xxunk', '<unk>'])
def test_unknown_token_is_found_wherever_it_stands(unk):
    vocab = Vocab(['a', 'b', unk])
    assert vocab.encode(['z', 'a', 'y', 'b']).tolist() == [2, 0, 2, 1]


def test_xxunk_comes_before_the_other_unknown_token():
    assert Vocab(['<unk>', 'a', 'xxunk']).unk_idx == 2


def test_unknown_tokens_leave_no_trace():
    vocab = Vocab(['xxunk', 'a'])
    before = dict(vocab.stoi)
    vocab.encode([f'unseen{i}' for i in range(1000)])
    assert 'unseen1' not in vocab and vocab.stoi == before and len(vocab) == 2


def test_without_unknown_token_the_stranger_is_named():
    with pytest.raises(ValueError, match="'z' is not in the vocabulary, which has neither 'xxunk' nor '<unk>'"):
        Vocab(['a', 'b']).encode(['a', 'z', 'y'])
    assert Vocab(['a', 'b']).encode(['b', 'a']).tolist() == [1, 0]


def test_encode_gives_int64_also_for_nothing():
    vocab = Vocab(['xxunk', 'a'])
    assert vocab.encode([]).dtype == vocab.encode(['a']).dtype == torch.int64
    assert vocab.encode([]).shape == (0,) and vocab.decode(vocab.encode([])) == []


def test_decode_takes_tensors_of_any_integer_type_and_lists():
    vocab = Vocab(['xxunk', 'a'])
    assert vocab.decode(torch.tensor([1, 0], dtype=torch.int32)) == vocab.decode([1, 0]) == ['a', 'xxunk']


@pytest.mark.parametrize('itos,error,message', [
    (['a', 'b', 'a'], ValueError, "'a' is in the vocabulary twice"),
    (['a', 3], TypeError, r'holds strings, not 3 \(int\)'), ([['a'], 'b'], TypeError, r"not \['a'\] \(list\)"),
    (['a', float('nan')], TypeError, 'holds strings, not nan')])
def test_what_is_no_vocabulary(itos, error, message):
    with pytest.raises(error, match=message): Vocab(itos)


def test_a_string_is_no_list_of_tokens():
    with pytest.raises(TypeError, match="not the string 'a text'"): Vocab(['xxunk']).encode('a text')


def test_equality_copies_and_pickles():
    vocab = Vocab(['xxunk', 'a', 'b'])
    assert vocab == pickle.loads(pickle.dumps(vocab)) == Vocab(tuple(vocab.itos))
    assert hash(vocab) == hash(Vocab(vocab.itos))
    assert vocab != Vocab(['xxunk', 'b', 'a']) and vocab != ['xxunk', 'a', 'b']


def test_changing_the_list_that_was_given_changes_nothing():
    tokens = ['xxunk', 'a']
    vocab = Vocab(tokens)
    tokens.append('b')
    assert len(vocab) == 2 and 'b' not in vocab


def test_match_is_the_place_in_the_old_one():
    rng = random.Random(0)
    old = Vocab(rng.sample([f'w{i}' for i in range(300)], 200))
    new = Vocab(rng.sample([f'w{i}' for i in range(300)], 150))
    slow = [old.itos.index(token) if token in old.itos else -1 for token in new.itos]
    assert match_vocab(old, new).tolist() == slow
    assert match_vocab(old, old).tolist() == list(range(200))
