"The weight-dropped GRU and its encoder, against `nn.GRU` and a slow loop."
import pickle
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.models.awd_lstm import AWD_LSTM
from awdtext.models.dropout import drop_weights
from awdtext.models.gru import GRU, WeightDropGRU, gru_loop
from awdtext.models.qrnn import QRNN, WeightDropQRNN

VOCAB_SZ = 20


def new_encoder(n_layers=3, **settings): return GRU(VOCAB_SZ, emb_sz=4, n_hid=6, n_layers=n_layers, **settings).double()


def slow_gru(x, h, W, U, b_ih, b_hh):
    "One GRU layer, one example and one step at a time, gate by gate."
    (Wr, Wu, Wn), (Ur, Uu, Un), (br, bu, bn), (dr, du, dn) = W.chunk(3), U.chunk(3), b_ih.chunk(3), b_hh.chunk(3)
    def sigmoid(y): return 1 / (1 + (-y).exp())
    out,lasts = [], []
    for k in range(len(x)):
        state = h[k]
        for t in range(x.shape[1]):
            r = sigmoid(Wr @ x[k, t] + br + Ur @ state + dr)
            u = sigmoid(Wu @ x[k, t] + bu + Uu @ state + du)
            new = torch.tanh(Wn @ x[k, t] + bn + r * (Un @ state + dn))
            state = (1 - u) * new + u * state
            out.append(state)
        lasts.append(state)
    return torch.stack(out).view(len(x), x.shape[1], -1), torch.stack(lasts)


# The layer

def test_loop_and_kernel_are_the_equations_written_out():
    rnn,x,h = WeightDropGRU(3, 4).double(), torch.randn(2, 7, 3).double(), torch.randn(2, 4).double()
    slow = slow_gru(x, h, *rnn.parameters())
    assert_close(gru_loop(x, h, *rnn.parameters()), slow, atol=1e-12, rtol=1e-12)
    out,(last,) = rnn(x, (h,))
    assert_close((out, last), slow, atol=1e-12, rtol=1e-12)


def test_a_layer_is_initialised_as_torchs():
    seed_all(3); ours = WeightDropGRU(7, 11).state_dict()
    seed_all(3); torchs = nn.GRU(7, 11).state_dict()
    assert list(ours) == list(torchs)
    assert_close(ours, torchs)


@pytest.mark.parametrize('p,input_p', [(.5, 0.), (0., .5), (.3, .6)])
def test_a_dropped_weight_is_dropped_for_the_whole_pass(p, input_p):
    rnn,x = WeightDropGRU(3, 8, p, input_p).double(), torch.randn(4, 9, 3).double()
    seed_all(1); out,_ = rnn(x)
    seed_all(1)
    W = drop_weights(rnn.weight_ih_l0, input_p) if input_p else rnn.weight_ih_l0
    U = drop_weights(rnn.weight_hh_l0, p) if p else rnn.weight_hh_l0
    slow,_ = slow_gru(x, torch.zeros(4, 8).double(), W, U, rnn.bias_ih_l0, rnn.bias_hh_l0)
    assert_close(out, slow)
    params = list(rnn.parameters())
    ours,theirs = (torch.autograd.grad(o.sin().sum(), params) for o in (out, slow))
    assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert torch.equal(ours[1] == 0, U == 0) and torch.equal(ours[0] == 0, W == 0)


# The encoder

@pytest.mark.parametrize('n_layers', [1, 2, 3])
def test_in_evaluation_the_encoder_is_a_stack_of_grus(n_layers):
    enc,ids = new_encoder(n_layers).eval(), torch.randint(VOCAB_SZ, (3, 7))
    x,states = enc.embedding.weight[ids], []
    for rnn in enc.rnns:
        gru = nn.GRU(rnn.n_in, rnn.n_hid, batch_first=True).double()
        gru.load_state_dict(rnn.state_dict())
        x,h = gru(x)
        states.append((h[0],))
    out = enc(ids)
    assert_close(out.raw, x, atol=1e-12, rtol=1e-12)
    assert_close(out.state, tuple(states), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize('cut', [1, 4, 8])
def test_the_state_continues_a_text_exactly_and_carries_the_gradient(cut):
    enc,ids = new_encoder().eval(), torch.randint(VOCAB_SZ, (2, 9))
    whole = enc(ids)
    first = enc(ids[:, :cut])
    rest = enc(ids[:, cut:], first.state)
    assert_close(torch.cat([first.raw, rest.raw], 1), whole.raw)
    assert_close(rest.state, whole.state)
    grads = [torch.autograd.grad(out.sum(), list(enc.parameters())) for out in (rest.raw, whole.raw[:, cut:])]
    assert_close(*grads)


# What all three encoders have in common

each_arch = pytest.mark.parametrize('arch', [AWD_LSTM, QRNN, GRU])


@each_arch
def test_dropouts_stand_where_the_awd_lstm_has_them(arch):
    enc = arch(VOCAB_SZ, 4, 6, 3, input_p=.3, hidden_p=.4, embed_p=.2, weight_p=0.)
    ids = torch.randint(2, VOCAB_SZ, (3, 5))
    seed_all(4); ours = enc(ids).raw
    seed_all(4); x = enc.input_dp(enc.embedding(ids.t()).transpose(0, 1))
    for i, rnn in enumerate(enc.rnns):
        if i > 0: x = enc.hidden_dps[i - 1](x)
        x,_ = rnn(x)
    assert_close(ours, x)
    assert [dp.p for dp in (enc.input_dp, *enc.hidden_dps)] == [.3, .4, .4] and enc.embedding.embed_p == .2


@each_arch
@pytest.mark.parametrize('copy', [deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
def test_a_trained_encoder_can_be_copied(arch, copy):
    enc,ids = arch(VOCAB_SZ, 4, 6, 3), torch.randint(VOCAB_SZ, (2, 5))
    enc(ids).raw.sum().backward()
    assert_close(copy(enc).eval()(ids), enc.eval()(ids))


@each_arch
def test_an_exported_program_says_the_same(arch):
    enc,ids = arch(VOCAB_SZ, 4, 6, 3).eval(), torch.randint(VOCAB_SZ, (2, 5))
    state = enc(ids).state
    with torch.no_grad(): program = torch.export.export(enc, (ids, state)).module()
    assert_close(tuple(program(ids.flip(0), state)), tuple(enc(ids.flip(0), state)))


@each_arch
def test_training_goes_on_after_an_evaluation(arch):
    enc,ids = arch(VOCAB_SZ, 4, 6, 3), torch.randint(2, VOCAB_SZ, (4, 9))
    opt = torch.optim.SGD(enc.parameters(), lr=.1)
    for _ in range(2):
        before = deepcopy(enc.state_dict())
        enc.train()(ids).raw.sum().backward()
        opt.step()
        assert all(not torch.equal(p, before[name]) for name, p in enc.named_parameters())
        with torch.no_grad(): assert_close(enc.eval()(ids).raw, enc(ids).raw)


@each_arch
def test_the_last_layer_can_have_a_size_of_its_own(arch):
    enc = arch(VOCAB_SZ, 4, 6, 2, n_hid_last=5)
    assert enc.out_sz == 5 and enc(torch.randint(VOCAB_SZ, (2, 3))).raw.shape == (2, 3, 5)


@pytest.mark.parametrize('new_layer', [WeightDropGRU, WeightDropQRNN, partial(WeightDropQRNN, window=2)],
                         ids=['gru', 'qrnn', 'qrnn-2'])
def test_where_a_document_begins_nothing_is_seen_of_the_one_before(new_layer):
    "Value, gradient and last state, against each document by itself."
    rnn,x = new_layer(3, 4).double(), torch.randn(3, 8, 3).double().requires_grad_()
    with torch.no_grad(): _,state = rnn(torch.randn(3, 2, 3).double())
    starts = torch.zeros(3, 8, dtype=torch.bool)
    begins = [[3, 4], [0, 7], []]
    for row, places in enumerate(begins): starts[row, places] = True
    out,last = rnn(x, state, starts)
    for row, places in enumerate(begins):
        own,pieces = tuple(o[row:row+1] for o in state), []
        for start, end in zip([0, *places], [*places, 8]):
            if start == end: continue
            piece,own = rnn(x[row:row+1, start:end], None if start in places else own)
            pieces.append(piece)
        slow = torch.cat(pieces, 1)[0]
        assert_close(out[row], slow, atol=1e-12, rtol=1e-12)
        assert_close([o[row] for o in last], [o[0] for o in own])
        inputs = [x, *rnn.parameters()]
        grads = [torch.autograd.grad(o.sin().sum(), inputs, retain_graph=True) for o in (out[row], slow)]
        assert_close(*grads, atol=1e-12, rtol=1e-12)


@each_arch
def test_wrong_input_is_told(arch):
    enc,ids = arch(VOCAB_SZ, 4, 6, 3), torch.randint(VOCAB_SZ, (3, 5))
    def fails(message): return pytest.raises(ValueError, match=message)
    with fails('batch of 3 and the ids are of a batch of 2: start with state=None'): enc(ids[:2], enc(ids).state)
    with fails('n_hid=0: use at least 1'): arch(VOCAB_SZ, 4, 0, 3)
    with fails('weight_p=2 is no dropout'): arch(VOCAB_SZ, 4, 6, 3, weight_p=2)
