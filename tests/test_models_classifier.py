"Whole documents in windows: against one document at a time, whatever the batch, and pooling against slow loops."
import copy
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from awdtext.models.awd_lstm import AWD_LSTM, awd_lstm_clas_config
from awdtext.models.classifier import (PoolingClassifier, SentenceEncoder, clas_split, get_text_classifier,
                                       masked_concat_pool, pooled_positions, windows)

VOCAB_SZ = 20
TINY = dict(emb_sz=4, n_hid=6, n_layers=2)


def new_classifier(seq_len=5, max_len=12, **kwargs):
    clas = get_text_classifier(VOCAB_SZ, 3, TINY, seq_len=seq_len, max_len=max_len, **kwargs).double()
    for bn in (m for m in clas.modules() if isinstance(m, nn.BatchNorm1d)):
        bn.running_mean.normal_()
        bn.running_var.uniform_(.5, 2.)
    return clas.eval()


def documents(*lengths):
    "Random ids, that of padding (1) among them: it is a word like others where a document has it."
    return [torch.randint(VOCAB_SZ, (n,)) for n in lengths]


def batch(docs, width=None, pad=1):
    ids = torch.full((len(docs), width or max(map(len, docs))), pad)
    for row, doc in zip(ids, docs): row[:len(doc)] = doc
    return ids, torch.tensor([len(doc) for doc in docs])


def slow_logits(clas, doc, seq_len, max_len):
    "One document, window by window; pooled token by token."
    outs,state = [], None
    for window in doc.split(seq_len):
        raw,state = clas.encoder(window[None], state)
        outs += raw[0].unbind()
        state = [(h.detach(), c.detach()) for h, c in state]
    outs = outs[-max_len:] if max_len else outs
    mean,largest = 0, outs[0]
    for h in outs: mean,largest = mean + h / len(outs), torch.maximum(largest, h)
    return clas.head.layers(torch.cat([outs[-1], largest, mean])[None])[0]


# Documents

lengths_of_all_kinds = (40, 23, 20, 13, 12, 11, 5, 4, 1)


@pytest.mark.parametrize('seq_len', [1, 4, 5, 40, 100])
@pytest.mark.parametrize('max_len', [1, 7, 12, None])
def test_logits_and_gradients_are_those_of_one_document_at_a_time(seq_len, max_len):
    clas,docs = new_classifier(seq_len, max_len), documents(*lengths_of_all_kinds)
    ours = clas(*batch(docs)).logits
    slow = torch.stack([slow_logits(clas, doc, seq_len, max_len) for doc in docs])
    assert_close(ours, slow, atol=1e-12, rtol=1e-10)
    upstream,params = torch.randn_like(ours), list(clas.parameters())
    grads = [torch.autograd.grad(logits, params, upstream) for logits in (ours, slow)]
    assert_close(*grads, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize('trial', range(8))
def test_a_documents_result_depends_on_nothing_but_the_document(trial):
    rng = random.Random(trial)
    clas,docs = new_classifier(), documents(*[rng.choice([1, 2, rng.randint(1, 60)]) for _ in range(12)])
    alone = torch.cat([clas(*batch([doc])).logits for doc in docs])
    clas.sentences.seq_len = rng.randint(1, 70)
    order = rng.sample(range(len(docs)), len(docs))
    bs = rng.randint(1, 12)
    for start in range(0, len(docs), bs):
        rows = order[start:start + bs]
        ids,lengths = batch([docs[i] for i in rows], width=rng.choice([None, 80]), pad=rng.randrange(VOCAB_SZ))
        assert_close(clas(ids, lengths).logits, alone[rows], atol=1e-12, rtol=1e-10)


def test_outputs_are_the_encoders_and_zero_where_not_pooled():
    enc,(ids, lengths) = AWD_LSTM(VOCAB_SZ, **TINY).double().eval(), batch(documents(9, 6, 2))
    out,mask = SentenceEncoder(enc, seq_len=4, max_len=3)(ids, lengths)
    assert mask.sum(1).tolist() == [3, 3, 2]
    assert (out[~mask] == 0).all()
    assert_close(out[mask], enc(ids).raw[pooled_positions(lengths, 0, 9, max_len=3)])


def test_what_is_not_pooled_runs_without_a_graph():
    enc,seen = AWD_LSTM(VOCAB_SZ, **TINY), []
    enc.register_forward_hook(lambda m, args, out: seen.append((out.raw.requires_grad, len(out.raw))))
    SentenceEncoder(enc, seq_len=4, max_len=6)(*batch(documents(20, 3)))
    assert seen == [(True, 2), (False, 1), (False, 1), (True, 2)]      # the last two windows are read as one batch
    seen.clear()
    with torch.no_grad(): SentenceEncoder(enc, seq_len=4, max_len=6)(*batch(documents(20, 3)))
    assert not any(graph for graph, _ in seen)


def test_windows_that_learn_share_one_lookup():
    "Its gradient is as large as the vocabulary. The others are looked up when they are read, so memory does not grow."
    enc,seen = AWD_LSTM(VOCAB_SZ, **TINY), []
    enc.embedding.emb.register_forward_hook(lambda m, args, out: seen.append((out.requires_grad, out[..., 0].numel())))
    SentenceEncoder(enc, seq_len=4, max_len=6)(*batch(documents(20, 3)))
    assert seen == [(True, 2*4), (False, 4), (False, 4), (True, 4 + 4)]
    seen.clear()
    SentenceEncoder(enc, seq_len=4)(*batch(documents(20, 3)))
    assert seen == [(True, 2*4 + 4*4)]


def test_only_rows_that_go_on_are_computed():
    enc,rows = AWD_LSTM(VOCAB_SZ, **TINY), []
    enc.register_forward_hook(lambda m, args, out: rows.append(tuple(out.raw.shape[:2])))
    SentenceEncoder(enc, seq_len=4)(*batch(documents(11, 8, 5, 4), width=50))
    assert rows == [(4 + 3 + 1, 4)]


@pytest.mark.parametrize('n,length', [(1, 1), (4, 4), (5, 3), (6, 3), (9, 3), (72, 4), (73, 4)])
def test_windows_are_of_one_length_that_wastes_no_step(n, length):
    "None is left over with a step or two, through which hardly a gradient would reach."
    found = windows([n], seq_len=4)
    assert [stop - start for start, stop, _ in found][:-1] == [length] * (len(found) - 1)
    assert 0 <= length * len(found) - n < len(found) == -(-n // 4)


def test_the_gradient_stops_at_windows():
    clas = new_classifier(seq_len=4, max_len=2)
    doc = torch.tensor([5, 6, 7, 8, 9, 10])
    clas(*batch([doc])).logits.sum().backward()
    touched = clas.encoder.embedding.weight.grad.abs().sum(1) > 0
    assert touched.nonzero()[:, 0].tolist() == [8, 9, 10]              # two windows of three


def one_window_after_another(clas, ids, lengths, seq_len):
    "The mean of each document's outputs, by plain calls for windows of the same length."
    enc,totals = clas.encoder, 0
    n_windows = -(-int(lengths.max()) // seq_len)
    length,state = -(-int(lengths.max()) // n_windows), None
    for start in range(0, int(lengths.max()), length):
        out,state = enc(ids[:, start:start + length], state)
        state = tuple(tuple(s.detach() for s in layer) for layer in state)
        reads = torch.arange(start, start + out.shape[1]) < lengths[:, None]
        totals = totals + (out * reads[..., None]).sum(1)
    return totals / lengths[:, None]


@pytest.mark.parametrize('arch', ['AWD_LSTM', 'QRNN', 'GRU'])
@pytest.mark.parametrize('lengths', [(31, 30, 17, 9, 8, 2), (12, 12, 12), (5,), (40, 3)])
def test_windows_read_as_one_batch_have_the_gradients_of_windows_read_in_turn(arch, lengths):
    clas = get_text_classifier(VOCAB_SZ, 2, dict(TINY, arch=arch), drop_mult=0., seq_len=8, max_len=None).double()
    ids,n = batch(documents(*lengths))
    out,mask = clas.sentences(ids, n)
    ours,slow = out.sum(1) / mask.sum(1, keepdim=True), one_window_after_another(clas, ids, n, 8)
    assert_close(ours, slow)
    params = [p for p in clas.encoder.parameters() if p.requires_grad]
    found,expected = (torch.autograd.grad(pooled.sin().sum(), params) for pooled in (ours, slow))
    assert_close(found, expected)
    assert all(g.abs().sum() > 0 for g in found)


@pytest.mark.parametrize('arch', ['AWD_LSTM', 'QRNN', 'GRU'])
def test_weights_and_words_are_dropped_once_for_a_batch_of_documents(arch):
    "And features for each window: with one word and weights that forget, windows differ by their features alone."
    config = dict(TINY, arch=arch, embed_p=.5)
    clas,ids = get_text_classifier(VOCAB_SZ, 2, config, drop_mult=1., seq_len=4), torch.full((2, 12), 7)
    drawn = []
    def note(module, args, out): drawn.append(out)
    clas.encoder.embedding.register_forward_hook(note)
    clas.train().sentences(ids, torch.tensor([12, 12]))
    words, = drawn
    assert words.shape == (4, 6, TINY['emb_sz']) and (words == words[0, 0]).all()
    for rnn in clas.encoder.rnns: rnn.register_forward_hook(note)
    drawn.clear()
    clas.sentences(ids, torch.tensor([12, 12]))
    assert len(drawn) == 1 + len(clas.encoder.rnns)


def test_training_works_with_every_dropout():
    clas = get_text_classifier(VOCAB_SZ, 2, TINY, seq_len=4, drop_mult=1.)
    opt = torch.optim.Adam(clas.parameters(), lr=.01)
    docs = [doc.clamp_min(4) for doc in documents(*[10] * 32)]
    y = torch.arange(32) % 2
    for doc, label in zip(docs, y): doc[3] = 2 + label
    ids,lengths = batch(docs)
    first = None
    for _ in range(80):
        loss = nn.functional.cross_entropy(clas(ids, lengths).logits, y)
        first = first or loss.item()
        opt.zero_grad(); loss.backward(); opt.step()
    assert (clas.eval()(ids, lengths).logits.argmax(1) == y).float().mean() > .9
    assert loss < first


@pytest.mark.parametrize('lengths,message', [
    ([4, 0], 'Document 1 of the batch has no tokens'), ([4, -1], 'has no tokens'),
    ([9, 1], 'Document 0 of the batch has length 9, but ids has only 8 columns'), ([3], '2 documents and 1 lengths')])
def test_impossible_lengths_are_told(lengths, message):
    clas,ids = new_classifier(), torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match=message): clas(ids, torch.tensor(lengths))


def test_one_document_cannot_train_batch_norm():
    clas = new_classifier().train()
    with pytest.raises(ValueError, match='a batch of one document: use a larger bs'): clas(*batch(documents(5)))


# Pooling and head

def test_pooling_is_a_slow_loop():
    out,mask = torch.randn(5, 9, 3).double(), torch.zeros(5, 9, dtype=torch.bool)
    for row, (a, b) in zip(mask, [(0, 9), (0, 1), (3, 8), (8, 9), (2, 4)]): row[a:b] = True
    for row, o, m in zip(masked_concat_pool(out, mask), out, mask):
        kept = [h for h, keep in zip(o, m) if keep]
        for j in range(3):
            values = [h[j].item() for h in kept]
            expected = values[-1], max(values), sum(values) / len(values)
            assert_close(row[[j, 3 + j, 6 + j]], torch.tensor(expected).double())


def test_pooling_ignores_what_is_not_pooled_even_nan():
    out,mask = torch.randn(2, 4, 3).double(), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    clean = masked_concat_pool(out, mask)
    assert_close(masked_concat_pool(out.masked_fill(~mask[..., None], torch.nan), mask), clean)


def test_gradcheck_of_pooling():
    out,mask = torch.randn(2, 4, 3).double().requires_grad_(), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]]).bool()
    assert torch.autograd.gradcheck(lambda out: masked_concat_pool(out, mask), out)


def test_the_head_is_batch_norm_dropout_linear_relu():
    head = PoolingClassifier([6, 5, 4, 2], ps=[.3, .2, .1])
    kinds = [[type(m) for m in block] for block in head.layers]
    block = [nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU]
    assert kinds == [block, block, block[:-1]]
    assert [b[1].p for b in head.layers] == [.3, .2, .1]
    assert all(b[2].bias is None for b in head.layers)


def test_y_range_bounds_a_regression():
    clas = get_text_classifier(VOCAB_SZ, 1, TINY, y_range=(1, 5)).eval()
    with torch.no_grad(): clas.head.layers[-1][-1].weight *= 1e4
    y = clas(*batch(documents(9, 8, 7, 6))).logits
    assert ((y >= 1) & (y <= 5)).all() and (y != 3).any()


def test_configuration_is_the_classifiers():
    clas = get_text_classifier(VOCAB_SZ, 2, 'small', drop_mult=1.)
    assert (clas.encoder.emb_sz, clas.encoder.n_hid) == (200, 600)
    assert clas.encoder.input_dp.p == awd_lstm_clas_config['input_p']
    assert [b[1].p for b in clas.head.layers] == [awd_lstm_clas_config['output_p'], .1]
    wide = get_text_classifier(VOCAB_SZ, 7, TINY, lin_ftrs=[8, 9], ps=[.2, .3], drop_mult=.5)
    assert [b[2].weight.shape for b in wide.head.layers] == [(8, 12), (9, 8), (7, 9)]
    assert [b[1].p for b in wide.head.layers] == [.2, .2, .3]
    with pytest.raises(ValueError, match='give one for each layer'): get_text_classifier(VOCAB_SZ, 2, TINY, ps=[.1, .1])
    with pytest.raises(ValueError, match='max_len=0'): get_text_classifier(VOCAB_SZ, 2, TINY, max_len=0)


def test_groups_cover_every_parameter_once():
    clas = new_classifier()
    assert sorted(id(p) for group in clas_split(clas) for p in group) == sorted(id(p) for p in clas.parameters())
    assert len(clas_split(clas)) == 2 + 2


# Frozen layers

def saved_in(clas, ids, lengths):
    "Shapes of all that is kept for a backward pass, and the logits."
    shapes = []
    def pack(t):
        shapes.append(tuple(t.shape))
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): logits = clas(ids, lengths).logits
    return shapes,logits


def freeze_below(clas, n):
    "As `freeze_to(-n)`."
    groups = clas_split(clas)
    for i, group in enumerate(groups):
        for p in group: p.requires_grad_(i >= len(groups) - n)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('arch', ['AWD_LSTM', 'GRU', 'QRNN'])
def test_a_frozen_encoder_keeps_nothing_for_a_backward_pass(arch, precision):
    torch.manual_seed(0)
    clas = get_text_classifier(VOCAB_SZ, 3, dict(TINY, arch=arch), seq_len=5, max_len=12, drop_mult=1.).train()
    ids,lengths = batch(documents(23, 20, 13, 8, 5, 2))
    head = copy.deepcopy(clas.head)
    freeze_below(clas, 1)
    with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'):
        shapes,logits = saved_in(clas, ids, lengths)
        head_alone = lambda *x: SimpleNamespace(logits=head.classify(torch.randn(6, 12)))
        of_head,_ = saved_in(head_alone, ids, lengths)
    assert sorted(shapes) == sorted(of_head)
    logits.float().sum().backward()
    assert all((p.grad is not None) == (name[:5] == 'head.') for name, p in clas.named_parameters())
    freeze_below(clas, 2)
    assert len(saved_in(clas, ids, lengths)[0]) > len(of_head)           # and otherwise it does


@pytest.mark.parametrize('n', [1, 2, 3, 4])
@pytest.mark.parametrize('training', [True, False])
def test_frozen_layers_say_and_teach_the_same(n, training):
    "With every dropout, whose masks are the same ones; gradients of what is not frozen are as without freezing."
    torch.manual_seed(n)
    free = get_text_classifier(VOCAB_SZ, 3, dict(TINY, n_layers=2), seq_len=5, max_len=12, drop_mult=1.).double()
    frozen,(ids, lengths) = copy.deepcopy(free), batch(documents(23, 20, 13, 8, 5, 2))
    freeze_below(frozen, n)
    results = []
    for clas in (free, frozen):
        torch.manual_seed(7)
        results.append(clas.train(training)(ids, lengths))
        results[-1].logits.square().sum().backward()
    assert_close(results[0].logits, results[1].logits, rtol=1e-10, atol=1e-12)
    assert (results[1].raw is None) == (n == 1)
    for p, q in zip(free.parameters(), frozen.parameters()):
        if q.requires_grad: assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
        else: assert q.grad is None


def test_layers_below_the_first_that_learns_run_without_a_graph():
    clas,modes = get_text_classifier(VOCAB_SZ, 2, dict(TINY, n_layers=3), seq_len=50), []
    for rnn in clas.encoder.rnns:
        rnn.register_forward_hook(lambda m, args, out: modes.append((torch.is_grad_enabled(), out[0].requires_grad)))
    for n, expected in ((1, [0, 0, 0]), (2, [0, 0, 1]), (3, [0, 1, 1]), (5, [1, 1, 1])):
        freeze_below(clas, n)
        modes.clear()
        clas(*batch(documents(9, 8)))
        assert modes == [(bool(e), bool(e)) for e in expected]


def test_dropout_of_frozen_layers_stays():
    clas,(ids, lengths) = get_text_classifier(VOCAB_SZ, 2, TINY, drop_mult=1.), batch(documents(9, 8))
    freeze_below(clas, 1)
    pooled = [clas.train().sentences.pooled(ids, lengths) for _ in range(2)]
    assert not pooled[0].equal(pooled[1])


def test_a_gradient_of_embeddings_goes_through_frozen_layers():
    "Who asks what the words did gets an answer."
    clas,(ids, lengths) = new_classifier(), batch(documents(9, 8, 3))
    def grads(clas):
        seen = []
        def keep(m, args, out):
            seen.append(out.detach().requires_grad_())
            return seen[-1]
        handle = clas.encoder.embedding.register_forward_hook(keep)
        clas(ids, lengths).logits.sum().backward()
        handle.remove()
        return [o.grad for o in seen]
    free = grads(clas)
    for p in clas.parameters(): p.requires_grad_(False)
    assert_close(grads(clas), free, rtol=1e-9, atol=1e-12)
    assert sum(g.abs().sum() for g in free) > 0


@pytest.mark.parametrize('max_len', [1, 7, None])
def test_pooling_of_windows_is_pooling_of_the_whole(max_len):
    clas,(ids, lengths) = new_classifier(seq_len=5, max_len=max_len), batch(documents(3, 23, 20, 13, 5, 23))
    whole = masked_concat_pool(*clas.sentences(ids, lengths))
    assert_close(clas.sentences.pooled(ids, lengths), whole, rtol=1e-10, atol=1e-12)          # windows of seq_len
    with torch.no_grad(): assert_close(clas.sentences.pooled(ids, lengths), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('how,message', [
    (dict(n_out=0), 'the size of a layer=0'), (dict(lin_ftrs=[0]), 'the size of a layer=0'),
    (dict(seq_len=2.5), 'seq_len=2.5'), (dict(max_len=0), 'max_len=0'), (dict(max_len=torch.nan), 'max_len=nan'),
    (dict(y_range=(1, 0)), 'lower one first'), (dict(y_range=(1,)), 'lower one first')])
def test_sizes_and_bounds_that_cannot_be(how, message):
    with pytest.raises(ValueError, match=message):
        get_text_classifier(**{**dict(vocab_sz=20, n_out=2, config=dict(emb_sz=4, n_hid=5, n_layers=2)), **how})


def test_the_last_layers_outputs_are_handed_on_uncut():
    "A slice of all of them is the same numbers, but its gradient costs a copy and comes in another order of sums."
    raw = new_classifier(seq_len=4)(*batch(documents(9, 3))).raw
    assert 'Slice' not in raw.grad_fn.name() and raw._base is None
