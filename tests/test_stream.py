"The stream of a language model: the law of its windows, its rows, its targets, its randomness."
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.data.corpus import Corpus, make_corpus
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.stream import (
    LMDataLoader,
    MarkedIds,
    RandomBPTT,
    batchify,
    document_starts,
    pass_generator,
    positive_int,
    rotate,
    unigram_perplexity,
)


def numbered(*lengths):
    "A corpus in which each token has an id of its own, from 0 on."
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Corpus(torch.arange(sum(lengths), dtype=torch.int32), offsets)


def joined(batches): return tuple(torch.cat(tensors, 1) for tensors in zip(*batches))


# The law of the windows

def paper_loop(n, bptt, rng):
    "awd-lstm-lm, main.py: train(), with the lengths it draws."
    lengths, i = [], 0
    while i < n:
        base = bptt if rng.random() < .95 else bptt / 2.
        lengths.append(max(5, int(rng.normal(base, 5))))
        i += lengths[-1]
    return lengths


def test_lengths_follow_the_law_of_the_papers_code():
    ours = RandomBPTT(70).lengths(2_000_000, torch.Generator().manual_seed(3))[:-1]
    theirs = paper_loop(2_000_000, 70, np.random.default_rng(3))
    assert abs(np.mean(ours) - 67.7) < .25 and abs(np.mean(theirs) - 67.7) < .25
    for quantile in (.01, .04, .06, .25, .5, .75, .99):
        assert abs(np.quantile(ours, quantile) - np.quantile(theirs, quantile)) <= 1
    half = [length for length in ours if length < 52]
    assert abs(len(half) / len(ours) - .05) < .004 and abs(np.mean(half) - 34.5) < .5
    assert 4.8 < np.std([length for length in ours if length >= 52]) < 5.2


@pytest.mark.parametrize('n,bptt', [(1, 70), (4, 5), (5, 5), (69, 70), (70, 70), (1234, 10), (100_000, 70)])
def test_lengths_are_those_of_a_loop_over_the_same_draws(n, bptt):
    law = RandomBPTT(bptt)
    generator = torch.Generator().manual_seed(5)
    uniform, normal = torch.rand(n // 5 + 1, generator=generator), torch.randn(n // 5 + 1, generator=generator)
    slow, left = [], n
    for u, z in zip(uniform, normal):
        base = bptt if u < .95 else bptt / 2
        slow.append(min(left, bptt + 20, max(5, int(torch.tensor(base) + 5. * z))))
        left -= slow[-1]
        if not left: break
    assert law.lengths(n, torch.Generator().manual_seed(5)) == slow
    assert sum(slow) == n


def test_bounds():
    lengths = RandomBPTT(20, sd=30.).lengths(200_000, torch.Generator().manual_seed(0))
    assert min(lengths[:-1]) == 5 and max(lengths) == 40 and lengths[-1] >= 1
    assert set(RandomBPTT(10, p=1., sd=0.).lengths(100, torch.Generator())) == {10}
    assert set(RandomBPTT(10, p=0., sd=0.).lengths(100, torch.Generator())) == {5}


def test_base_below_the_floor():
    with pytest.raises(ValueError, match='bptt=4 is too short .* use at least 5, or random_bptt=False'):
        LMDataLoader(numbered(100), bs=2, seq_len=4, random_bptt=True)
    assert len(LMDataLoader(numbered(100), bs=2, seq_len=4)) == math.ceil(50 / 4)


# Rows and targets

@pytest.mark.parametrize('random_bptt', [False, True])
@pytest.mark.parametrize('bs,seq_len', [(1, 7), (2, 5), (7, 10), (64, 72)])
def test_each_row_goes_on_where_it_ended(bs, seq_len, random_bptt):
    dl = LMDataLoader(numbered(3000), bs=bs, seq_len=seq_len, random_bptt=random_bptt, seed=0)
    batches = list(dl)
    for (_, y), (x_next, y_next) in zip(batches, batches[1:]):
        assert (x_next[:, 0] == y[:, -1])[y_next[:, 0] >= 0].all()
    for x, y in batches:
        assert x.shape == y.shape == (bs, x.shape[1]) and x.dtype == y.dtype == torch.int64
        assert (x[:, 1:] == y[:, :-1])[y[:, 1:] >= 0].all()


@pytest.mark.parametrize('n_tokens', [2, 3, 10, 64, 65, 66, 129, 1000])
@pytest.mark.parametrize('bs,seq_len', [(1, 1), (1, 7), (3, 4), (64, 72)])
def test_validation_counts_each_target_once(n_tokens, bs, seq_len):
    dl = LMDataLoader(numbered(n_tokens), bs=bs, seq_len=seq_len)
    batches = list(dl)
    pairs = Counter((a, b) for x, y in batches for a, b in zip(x.flatten().tolist(), y.flatten().tolist()) if b != -100)
    assert pairs == Counter((i, i + 1) for i in range(n_tokens - 1))
    assert dl.n_tokens == n_tokens - 1 and len(dl) == len(batches)
    assert all((x[y == -100] == 0).all() for x, y in batches)
    assert list(map(len, batches)) == [2] * len(batches)


@pytest.mark.parametrize('n_tokens', [6, 65, 66, 500])
@pytest.mark.parametrize('options', [dict(random_bptt=True), dict(shuffle=True), dict(random_bptt=True, shuffle=True)])
def test_training_leaves_out_fewer_tokens_than_rows(n_tokens, options):
    dl = LMDataLoader(numbered(n_tokens), bs=5, seq_len=8, seed=1, **options)
    batches = list(dl)
    x, y = joined(batches)
    assert (y >= 0).all() and y.equal(x + 1)
    assert dl.n_tokens == y.numel() == (n_tokens - 1) // 5 * 5 and len(set(y.flatten().tolist())) == dl.n_tokens


@pytest.mark.parametrize('options', [{}, dict(random_bptt=True), dict(reset_at_docs=True)])
def test_windows_go_on_where_the_last_one_ended_also_from_block_to_block(options):
    "Batches are views of blocks of 64; writing into one changes no other."
    batches = list(LMDataLoader(numbered(5_001), bs=5, seq_len=7, seed=1, **options))
    assert len(batches) > 128
    x,y = (torch.cat([getattr(b[i], 'ids', b[i]) for b in batches], 1) for i in (0, 1))
    assert x.equal(torch.arange(5_000).view(5, -1)) and y.equal(x + 1)
    for x, _ in batches: getattr(x, 'ids', x).zero_()
    assert torch.cat([y for _, y in batches], 1).equal(torch.arange(1, 5_001).view(5, -1))


def test_fixed_windows_are_fastais():
    "fastai: bl = round_down(n - 1, bs) // bs, windows of seq_len, the last one shorter."
    ids = torch.arange(1001, dtype=torch.int32)
    x, y = batchify(ids, 16, drop_rest=True)
    bl = 1000 // 16
    for row in range(16): assert x[row].tolist() == list(range(row * bl, (row + 1) * bl))
    assert x.data_ptr() == ids.data_ptr()  # no copy


def test_windows_do_not_change_what_is_read():
    wide, narrow = (joined(LMDataLoader(numbered(777), bs=4, seq_len=n)) for n in (300, 7))
    assert_close(wide, narrow)


# Randomness

def test_a_pass_is_a_function_of_seed_and_epoch():
    corpus = numbered(*[7] * 40)
    def passes(seed, n=3):
        dl = LMDataLoader(corpus, bs=3, seq_len=10, random_bptt=True, shuffle=True, seed=seed)
        return [list(dl) for _ in range(n)]
    first, again = passes(5), passes(5)
    for a, b in zip(first, again): assert_close(a, b)
    different = [joined(batches)[0] for batches in first + passes(6) + passes(5 + 2**12) + passes(5 + 2**32)]
    assert all(not a.equal(b) for i, a in enumerate(different) for b in different[:i])


def test_setting_the_epoch_goes_on_from_there():
    make = lambda: LMDataLoader(numbered(*[5] * 60), bs=4, seq_len=9, random_bptt=True, shuffle=True, seed=2)
    dl, resumed = make(), make()
    third = [list(dl) for _ in range(3)][2]
    resumed.epoch = 2
    assert len(resumed) == len(third)
    assert_close(list(resumed), third)
    assert resumed.epoch == dl.epoch == 3


def test_length_of_the_coming_pass():
    dl = LMDataLoader(numbered(5000), bs=3, seq_len=10, random_bptt=True, seed=0)
    lengths = []
    for _ in range(5):
        expected = len(dl)
        lengths.append(sum(1 for _ in dl))
        assert lengths[-1] == expected
    assert len(set(lengths)) > 1


def test_global_randomness_is_neither_used_nor_changed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    dl = LMDataLoader(numbered(*[7] * 40), bs=3, seq_len=10, random_bptt=True, shuffle=True, seed=1)
    list(dl)
    assert torch.get_rng_state().equal(before)


def test_seed_all_governs_loaders_without_a_seed():
    def batches(seed):
        seed_all(seed)
        return joined(LMDataLoader(numbered(*[7] * 40), bs=3, seq_len=10, shuffle=True))[0]
    assert batches(1).equal(batches(1)) and not batches(1).equal(batches(2))


def test_shuffling_moves_documents_and_nothing_else():
    dl = LMDataLoader(numbered(*range(1, 30)), bs=1, seq_len=50, shuffle=True, seed=3)
    bounds = dl.corpus.offsets.tolist()
    docs = {start: list(range(start, end)) for start, end in zip(bounds, bounds[1:])}
    x, y = joined(dl)
    ids = x[0].tolist() + y[0, -1:].tolist()
    read = []
    while ids:
        doc = docs[ids[0]]
        assert ids[:len(doc)] == doc
        read.append(ids[0])
        ids = ids[len(doc):]
    assert sorted(read) == sorted(docs) and read != sorted(read)


def test_two_passes_at_the_same_time():
    dl = LMDataLoader(numbered(500), bs=2, seq_len=11, random_bptt=True, seed=4)
    first, second = iter(dl), iter(dl)
    mixed = [(a, b) for a, b in zip(first, second)]
    dl.epoch = 0
    for (a, _), expected in zip(mixed, dl): assert_close(a, expected)
    for (_, b), expected in zip(mixed, dl): assert_close(b, expected)


def test_backwards_reads_each_document_from_its_end():
    x, y = joined(LMDataLoader(numbered(3, 2, 4), bs=1, seq_len=2, backwards=True))
    assert x[0].tolist() == [2, 1, 0, 4, 3, 8, 7, 6] and y[0].tolist() == [1, 0, 4, 3, 8, 7, 6, 5]


def test_device():
    x, y = next(iter(LMDataLoader(numbered(50), bs=2, device='meta')))
    assert x.device.type == y.device.type == 'meta'


# Partial shuffle

def press_loop(row, split):
    "Partially shuffling the training data (Press 2019): the row from `split` on, then its beginning, token by token."
    return [row[(i + split) % len(row)] for i in range(len(row))]


@pytest.mark.parametrize('bs,n', [(1, 30), (3, 100), (7, 65)])
def test_partial_shuffle_is_the_loop_per_row(bs, n):
    dl = LMDataLoader(numbered(n), bs=bs, seq_len=9, partial_shuffle=True, seed=1)
    seen = set()
    for _ in range(20):
        x, y = joined(dl)
        rows, targets = batchify(numbered(n).ids, bs, drop_rest=True)
        for i in range(bs):
            split = (rows[i] == x[i, 0]).nonzero().item()
            assert x[i].tolist() == press_loop(rows[i].tolist(), split)
            assert y[i].tolist() == press_loop(targets[i].tolist(), split)
            seen.add((i, split))
    n_steps = (n - 1) // bs
    assert len(seen) > min(10, n_steps / 2) * bs, "every row has its own place, another in each pass"
    assert all((x[:, i] + 1 == y[:, i]).all() for i in range(n_steps)), "all targets are true"


def test_every_place_of_a_row_is_as_likely():
    dl = LMDataLoader(numbered(21), bs=2, seq_len=10, partial_shuffle=True, seed=0)
    first = Counter(x[0, 0].item() for _ in range(2000) for x, _ in [next(iter(dl))])
    assert set(first) == set(range(10)) and max(first.values()) < 260 and min(first.values()) > 145


@pytest.mark.parametrize('backwards', [False, True])
def test_orders_are_independent_of_each_other(backwards):
    "Windows and order of documents are those without partial shuffle; rotated back, the text is the same."
    make = lambda **kw: LMDataLoader(numbered(*[7] * 40), bs=3, seq_len=10, random_bptt=True, shuffle=True, seed=1,
                                     backwards=backwards, **kw)
    plain, partial = list(make()), list(make(partial_shuffle=True))
    assert [x.shape for x, _ in plain] == [x.shape for x, _ in partial]
    xs, ps = joined(plain)[0], joined(partial)[0]
    for row, other in zip(xs.tolist(), ps.tolist()):
        split = row.index(other[0])
        assert other == press_loop(row, split)
    assert not xs.equal(ps)


def test_rotate_makes_no_row_another():
    rows = torch.arange(12).view(3, 4)
    assert rotate(rows, [0, 0, 0]).equal(rows) and rotate(rows, [1, 2, 3]).sort(1)[0].equal(rows)


# Marks of documents

@pytest.mark.parametrize('options', [{}, dict(random_bptt=True, shuffle=True), dict(partial_shuffle=True, shuffle=True),
                                     dict(backwards=True), dict(shuffle=True, backwards=True, random_bptt=True)])
@pytest.mark.parametrize('bs', [1, 3, 8])
def test_marks_are_where_documents_and_rows_begin(bs, options):
    lengths = [1, 5, 0, 12, 2, 0, 7, 3, 1, 1, 9]
    corpus = numbered(*lengths)
    heads = {(doc[-1] if 'backwards' in options else doc[0]).item() for doc in corpus if len(doc)}
    plain = LMDataLoader(corpus, bs=bs, seq_len=5, seed=3, **options)
    marked = LMDataLoader(corpus, bs=bs, seq_len=5, seed=3, reset_at_docs=True, **options)
    windows = list(marked)
    assert all(isinstance(x, MarkedIds) and x.starts.shape == x.shape == y.shape for x, y in windows)
    ids, starts, y = (torch.cat(o, 1) for o in zip(*((x.ids, x.starts, y) for x, y in windows)))
    assert_close((ids, y), joined(plain))
    of_rows = batchify(torch.arange(corpus.n_tokens), plain.bs, plain.drop_rest)[0][:, 0].tolist()
    known = y >= 0
    for i, row in enumerate(ids.tolist()):
        for t, token in enumerate(row):
            if not known[i, t]: continue
            if token in heads: assert starts[i, t]
            elif 'partial_shuffle' not in options: assert starts[i, t].item() == (t == 0)
        if 'partial_shuffle' in options:
            n_extra = sum(starts[i, t].item() and row[t] not in heads for t in range(len(row)))
            assert n_extra <= 1, "only the place where the row began"
    assert len(of_rows) == plain.bs
    assert marked.describe() != plain.describe()


def test_marks_on_a_device():
    x, _ = next(iter(LMDataLoader(numbered(50), bs=2, device='meta', reset_at_docs=True)))
    assert x.ids.device.type == x.starts.device.type == 'meta'


def test_a_text_of_one_document_has_marks_at_its_rows_alone():
    starts = document_starts(numbered(100), 4, drop_rest=True)
    assert starts.sum() == 4 and starts[:, 0].all()


# What reaches a user

def test_a_user_chooses_how_a_language_model_reads():
    docs = [[f'w{i}', 'a', 'b'] for i in range(40)]
    dls = TextDataLoaders.from_tokens(docs, docs[:5], docs[5:9], bs=4, seq_len=8, seed=0)
    before = [dl.describe() for dl in dls]
    assert dls.train.describe()['random'] == [True, True, False]
    assert dls.read_lm(shuffle=False, random_bptt=False) is dls
    assert_close(joined(dls.train)[1], batchify(dls.train.corpus.ids, 4, False)[1].long())
    dls.read_lm(partial_shuffle=True)
    assert [dl.describe()['random'] for dl in dls] == [[True, True, True], [False] * 3, [False] * 3]
    dls.read_lm(reset_at_docs=True)
    assert all(isinstance(next(iter(dl))[0], MarkedIds) for dl in (*dls, dls.test_dl(docs)))
    dls.read_lm()
    assert [dl.describe() for dl in dls] == before
    dls.show_batch()


# What cannot be

@pytest.mark.parametrize('name', ['bs', 'seq_len'])
@pytest.mark.parametrize('value', [0, -1, 2.5, '64', None, True])
def test_sizes_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f'{name}={value!r}: use a whole number, 1 or more'):
        LMDataLoader(numbered(50), **{name: value})


def test_numpys_integers_are_whole_numbers():
    assert type(positive_int(np.int32(3), 'bs')) is int


@pytest.mark.parametrize('lengths,message', [((), '0 documents with 0 tokens'), ((1,), '1 documents with 1 tokens'),
                                             ((0, 0), '2 documents with 0 tokens')])
def test_nothing_to_read(lengths, message):
    with pytest.raises(ValueError, match=f'nothing to read: {message}'): LMDataLoader(numbered(*lengths))


def test_text_shorter_than_the_batch():
    dl = LMDataLoader(numbered(3), bs=64, seq_len=72)
    assert dl.bs == 2 and [y.tolist() for _, y in dl] == [[[1], [2]]]


def test_negative_seed():
    with pytest.raises(ValueError, match='seed=-1'): pass_generator(-1, 0)


# The baseline

def test_unigram_perplexity_is_that_of_a_slow_loop():
    train, vocab = make_corpus([list('the cat sat on the mat'), list('a dog')], min_freq=2)
    valid, _ = make_corpus([list('the hat'), list('zz top')], vocab)
    counts = Counter(train.ids.tolist())
    total = train.n_tokens + len(vocab)
    loss = [-math.log((counts[i] + 1) / total) for i in valid.ids.tolist()[1:]]
    assert abs(unigram_perplexity(train, valid, len(vocab)) - math.exp(sum(loss) / len(loss))) < 1e-9


def test_unigram_perplexity_needs_targets():
    with pytest.raises(ValueError, match='has no targets'): unigram_perplexity(numbered(5), numbered(1), 5)
