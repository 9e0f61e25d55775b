"The recurrence in blocks and the QRNN, against loops over time and the equations written out."
import pickle
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.models.awd_lstm import AWDLSTMConfig
from awdtext.models.dropout import drop_weights
from awdtext.models.qrnn import QRNN, WeightDropQRNN, linear_recurrence, qrnn_loop, scan

VOCAB_SZ = 20


def new_encoder(n_layers=3, **settings):
    return QRNN(VOCAB_SZ, emb_sz=4, n_hid=6, n_layers=n_layers, **settings).double()


def slow_recurrence(a, b, c):
    cs = []
    for a_t, b_t in zip(a, b):
        c = a_t * c + b_t
        cs.append(c)
    return torch.stack(cs)


def slow_qrnn(x, c, W, b, last=None, keep=None):
    "One QRNN layer, one example and one step at a time, gate by gate; `keep` is zoneout's factor of `1 - f`."
    (Wz, Wf, Wo), (bz, bf, bo) = W.chunk(3), b.chunk(3)
    def sigmoid(u): return 1 / (1 + (-u).exp())
    out,cells = [], []
    for k in range(len(x)):
        cell = c[k]
        for t in range(x.shape[1]):
            seen = x[k, t]
            if last is not None: seen = torch.cat([seen, last[k] if t == 0 else x[k, t - 1]])
            z,f,o = torch.tanh(Wz @ seen + bz), sigmoid(Wf @ seen + bf), sigmoid(Wo @ seen + bo)
            if keep is not None: f = 1 - keep[t, k] * (1 - f)
            cell = f * cell + (1 - f) * z
            out.append(o * cell)
        cells.append(cell)
    return torch.stack(out).view(len(x), x.shape[1], -1), torch.stack(cells)


# The recurrence

@pytest.mark.parametrize('n', [*range(1, 20), 70, 71, 140])
def test_blocks_are_the_loop_for_every_length(n):
    a,b,c = torch.rand(n, 2, 3).double(), torch.randn(n, 2, 3).double(), torch.randn(2, 3).double()
    given = a.clone(), b.clone(), c.clone()
    assert_close(scan(a, b, c), slow_recurrence(a, b, c), atol=1e-12, rtol=1e-12)
    assert all(torch.equal(o, old) for o, old in zip((a, b, c), given))


@pytest.mark.parametrize('factor', [0., 1e-30, .5, 1. - 1e-7, 1.])
def test_float32_stays_exact_where_products_vanish_or_do_not_decay(factor):
    a,b,c = torch.full((500, 1, 3), factor), torch.randn(500, 1, 3), torch.randn(1, 3)
    exact = slow_recurrence(a.double(), b.double(), c.double())
    assert_close(scan(a, b, c).double(), exact, atol=1e-4, rtol=1e-5)
    inputs = [o.requires_grad_() for o in (a, b, c)]
    for grad in torch.autograd.grad(linear_recurrence(*inputs).sum(), inputs): assert grad.isfinite().all()


@pytest.mark.parametrize('n', [1, 2, 5, 9, 11])
def test_gradcheck_once_and_twice(n):
    inputs = [torch.rand(*shape).double().requires_grad_() for shape in ((n, 1, 2), (n, 1, 2), (1, 2))]
    assert torch.autograd.gradcheck(linear_recurrence, inputs)
    assert torch.autograd.gradgradcheck(linear_recurrence, inputs)


def test_gradients_are_those_of_the_loop():
    def leaf(*shape): return torch.rand(*shape).double().requires_grad_()
    inputs = leaf(70, 3, 4), leaf(70, 3, 4), leaf(3, 4)
    ours,slow = (torch.autograd.grad(f(*inputs).sin().sum(), inputs) for f in (linear_recurrence, slow_recurrence))
    assert_close(ours, slow, atol=1e-12, rtol=1e-12)


# The layer

@pytest.mark.parametrize('window', [1, 2])
def test_loop_and_layer_are_the_equations_written_out(window):
    rnn,x = WeightDropQRNN(3, 4, window, weight_p=.5).double().eval(), torch.randn(2, 7, 3).double()
    c,last = torch.randn(2, 4).double(), torch.randn(2, 3).double() if window == 2 else None
    slow = slow_qrnn(x, c, rnn.weight, rnn.bias, last)
    assert_close(qrnn_loop(x, c, rnn.weight, rnn.bias, last), slow, atol=1e-12, rtol=1e-12)
    out,state = rnn(x, (c,) if last is None else (c, last))
    assert_close((out, state[0]), slow, atol=1e-12, rtol=1e-12)
    assert len(state) == window and (window == 1 or torch.equal(state[1], x[:, -1]))


@pytest.mark.parametrize('window', [1, 2])
def test_the_gradients_of_the_layer_are_those_of_the_loop(window):
    rnn,x = WeightDropQRNN(3, 4, window).double(), torch.randn(2, 9, 3).double().requires_grad_()
    c,last = torch.randn(2, 4).double().requires_grad_(), torch.randn(2, 3).double().requires_grad_()
    state = (c, last)[:window]
    inputs = [x, *state, *rnn.parameters()]
    ours = torch.autograd.grad(rnn(x, state)[0].sin().sum(), inputs)
    slow = torch.autograd.grad(qrnn_loop(x, c, rnn.weight, rnn.bias, *state[1:])[0].sin().sum(), inputs)
    assert_close(ours, slow, atol=1e-12, rtol=1e-12)


def test_a_dropped_weight_is_dropped_for_the_whole_pass():
    rnn,x = WeightDropQRNN(3, 8, 2, weight_p=.5).double(), torch.randn(4, 9, 3).double()
    seed_all(1); ours,_ = rnn(x)
    seed_all(1); W = drop_weights(rnn.weight, .5)
    assert_close(ours, slow_qrnn(x, torch.zeros(4, 8).double(), W, rnn.bias, torch.zeros(4, 3).double())[0])
    ours.sum().backward()
    assert (rnn.weight.grad[W == 0] == 0).all() and (W == 0).any()


def test_zoneout_keeps_the_cell_in_training_and_its_average_in_evaluation():
    rnn,x,c = WeightDropQRNN(3, 4, zoneout_p=.3).double(), torch.randn(2, 6, 3).double(), torch.randn(2, 4).double()
    seed_all(1); out,(last,) = rnn(x, (c,))
    seed_all(1); keep = torch.empty(6, 2, 4).double().bernoulli_(.7)
    assert_close((out, last), slow_qrnn(x, c, rnn.weight, rnn.bias, keep=keep))
    assert 0 < keep.sum() < keep.numel()
    out,(last,) = rnn.eval()(x, (c,))
    assert_close((out, last), slow_qrnn(x, c, rnn.weight, rnn.bias, keep=torch.full((6, 2, 4), .7).double()))


def test_in_bfloat16_the_cell_is_still_float32():
    rnn,x = WeightDropQRNN(3, 4), torch.randn(2, 50, 3)
    with torch.autocast('cpu', torch.bfloat16): out,(c,) = rnn(x)
    assert out.dtype == c.dtype == torch.float32
    assert_close(out, rnn(x)[0], atol=.05, rtol=.05)


# The encoder

@pytest.mark.parametrize('window', [1, 2])
@pytest.mark.parametrize('n_layers', [1, 2, 3])
def test_in_evaluation_the_encoder_is_a_stack_of_loops(n_layers, window):
    enc,ids = new_encoder(n_layers, window=window).eval(), torch.randint(VOCAB_SZ, (3, 7))
    x = enc.embedding.weight[ids]
    for i, (rnn, n) in enumerate(zip(enc.rnns, [6] * (n_layers - 1) + [4])):
        last = torch.zeros_like(x[:, 0]) if i == 0 and window == 2 else None
        x,_ = slow_qrnn(x, torch.zeros(3, n).double(), rnn.weight, rnn.bias, last)
    assert_close(enc(ids).raw, x, atol=1e-12, rtol=1e-12)
    assert [rnn.window for rnn in enc.rnns] == [window] + [1] * (n_layers - 1)


@pytest.mark.parametrize('window', [1, 2])
@pytest.mark.parametrize('cut', [1, 4, 8])
def test_the_state_continues_a_text_exactly_and_carries_the_gradient(window, cut):
    enc,ids = new_encoder(window=window, zoneout_p=.1).eval(), torch.randint(VOCAB_SZ, (2, 9))
    whole = enc(ids)
    first = enc(ids[:, :cut])
    rest = enc(ids[:, cut:], first.state)
    assert_close(torch.cat([first.raw, rest.raw], 1), whole.raw, atol=1e-12, rtol=1e-12)
    assert_close(rest.state, whole.state)
    grads = [torch.autograd.grad(out.sum(), list(enc.parameters())) for out in (rest.raw, whole.raw[:, cut:])]
    assert_close(*grads, atol=1e-12, rtol=1e-12)


def test_token_by_token_is_the_whole():
    enc,ids = new_encoder().eval(), torch.randint(VOCAB_SZ, (2, 6))
    raws,state = [], None
    for i in range(6):
        raw,state = enc(ids[:, i:i+1], state)
        raws.append(raw)
    assert_close(torch.cat(raws, 1), enc(ids).raw, atol=1e-12, rtol=1e-12)


def test_nothing_is_seen_of_the_future_nor_of_other_examples():
    enc,ids = new_encoder().eval(), torch.randint(VOCAB_SZ, (4, 6))
    other = ids.clone()
    other[:, 4] = (ids[:, 4] + 1) % VOCAB_SZ
    assert_close(enc(other).raw[:, :4], enc(ids).raw[:, :4])
    assert (enc(other).raw[:, 5] != enc(ids).raw[:, 5]).any()
    assert_close(enc(ids).raw[2:3], enc(ids[2:3]).raw)


@pytest.mark.parametrize('copy', [deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
def test_a_trained_encoder_can_be_copied(copy):
    enc,ids = new_encoder(), torch.randint(VOCAB_SZ, (2, 5))
    enc(ids).raw.sum().backward()
    assert_close(copy(enc).eval()(ids), enc.eval()(ids))


def test_an_exported_program_says_the_same():
    enc,ids = new_encoder().eval(), torch.randint(VOCAB_SZ, (2, 5))
    state = enc(ids).state
    with torch.no_grad(): program = torch.export.export(enc, (ids, state)).module()
    assert_close(tuple(program(ids.flip(0), state)), tuple(enc(ids.flip(0), state)))


def test_memory_stays_time_first():
    raw = new_encoder(2)(torch.randint(VOCAB_SZ, (3, 7))).raw
    assert raw.shape == (3, 7, 4) and raw.transpose(0, 1).is_contiguous()


@pytest.mark.gpu
def test_on_cuda_the_same():
    enc,ids = QRNN(VOCAB_SZ, 4, 6, 3).double().eval(), torch.randint(VOCAB_SZ, (3, 70))
    here = enc(ids)
    grads = torch.autograd.grad(here.raw.sin().sum(), list(enc.parameters()))
    there = enc.cuda()(ids.cuda())
    assert_close(there.raw.cpu(), here.raw)
    on_gpu = torch.autograd.grad(there.raw.sin().sum(), list(enc.parameters()))
    assert_close([g.cpu() for g in on_gpu], list(grads))


def test_wrong_input_is_told():
    enc,ids = new_encoder(), torch.randint(VOCAB_SZ, (3, 5))
    def fails(message): return pytest.raises(ValueError, match=message)
    for window in (0, 3):
        with fails(f'window={window}: use 1 or 2'): WeightDropQRNN(3, 4, window)
        with fails(f"window={window}: a QRNN's first layer sees 1 or 2 steps"): new_encoder(window=window)
    with fails('zoneout_p=1.0 is no dropout probability'): WeightDropQRNN(3, 4, zoneout_p=1.)
    with fails('leave input_weight_p at 0'): AWDLSTMConfig(arch='QRNN', input_weight_p=.1)
    with fails('The state has 1 layers and the encoder 3'): enc(ids, enc(ids).state[:1])
    with fails("arch='qrnn': use one of 'AWD_LSTM', 'QRNN', 'GRU'"): AWDLSTMConfig(arch='qrnn')
