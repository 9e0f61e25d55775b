"One weight-dropped layer and the encoder, against `nn.LSTM` and against a slow loop with the masks given."
import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.models.awd_lstm import AWD_LSTM, AWDLSTMConfig, awd_lstm_clas_config, presets
from awdtext.models.dropout import drop_weights, dropout_mask
from awdtext.models.lstm import WeightDropLSTM, lstm_kernel, lstm_loop

VOCAB_SZ = 20


def new_encoder(n_layers=3, **dropouts):
    return AWD_LSTM(VOCAB_SZ, emb_sz=4, n_hid=6, n_layers=n_layers, **dropouts).double()


def slow_lstm(x, state, W, U, b):
    "One LSTM layer, one example and one step at a time, gate by gate."
    (Wi, Wf, Wc, Wo), (Ui, Uf, Uc, Uo), (bi, bf, bc, bo) = W.chunk(4), U.chunk(4), b.chunk(4)
    out,hs,cs = [], [], []
    for k in range(len(x)):
        h,c = state[0][k], state[1][k]
        for t in range(x.shape[1]):
            i = 1 / (1 + (-(Wi @ x[k, t] + Ui @ h + bi)).exp())
            f = 1 / (1 + (-(Wf @ x[k, t] + Uf @ h + bf)).exp())
            o = 1 / (1 + (-(Wo @ x[k, t] + Uo @ h + bo)).exp())
            c = f * c + i * torch.tanh(Wc @ x[k, t] + Uc @ h + bc)
            h = o * torch.tanh(c)
            out.append(h)
        hs.append(h)
        cs.append(c)
    return torch.stack(out).view(len(x), x.shape[1], -1), (torch.stack(hs), torch.stack(cs))


# The layer

def test_the_loop_is_the_equations_written_out():
    x,state = torch.randn(2, 5, 3).double(), (torch.randn(2, 4).double(), torch.randn(2, 4).double())
    W,U,b = torch.randn(16, 3).double(), torch.randn(16, 4).double(), torch.randn(16).double()
    assert_close(lstm_loop(x, *state, W, U, b), slow_lstm(x, state, W, U, b))


@pytest.mark.parametrize('dtype,tol', [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_kernel_and_loop_agree_in_value_and_gradients(dtype, tol):
    def leaf(*shape): return torch.randn(*shape, dtype=dtype).requires_grad_()
    x,h,c,W,U,b1,b2 = leaf(3, 7, 4), leaf(3, 5), leaf(3, 5), leaf(20, 4), leaf(20, 5), leaf(20), leaf(20)
    ours,(h1, c1) = lstm_kernel(x, h, c, W, U, b1, b2)
    loop,(h2, c2) = lstm_loop(x, h, c, W, U, b1 + b2)
    assert_close((ours, h1, c1), (loop, h2, c2), atol=tol, rtol=tol)
    grads = [torch.autograd.grad((out.sin().sum() + (hn * cn).sum()), (x, h, c, W, U, b1, b2))
             for out, hn, cn in ((ours, h1, c1), (loop, h2, c2))]
    assert_close(*grads, atol=tol, rtol=tol)


def test_gradcheck_of_a_layer_in_training():
    rnn = WeightDropLSTM(2, 3, weight_p=.5, input_weight_p=.3).double()
    x = torch.randn(2, 3, 2).double().requires_grad_()
    def run(x, *params):
        seed_all(0)
        out,(h, c) = torch.func.functional_call(rnn, dict(zip(dict(rnn.named_parameters()), params)), (x,))
        return out, h, c
    assert torch.autograd.gradcheck(run, (x, *rnn.parameters()))


def test_a_layer_is_initialised_as_torchs():
    seed_all(3); ours = WeightDropLSTM(7, 11).state_dict()
    seed_all(3); torchs = nn.LSTM(7, 11).state_dict()
    assert list(ours) == list(torchs)
    assert_close(ours, torchs)


@pytest.mark.parametrize('p,input_p', [(.5, 0.), (0., .5), (.3, .6)])
def test_a_dropped_weight_is_dropped_for_the_whole_pass(p, input_p):
    rnn,x = WeightDropLSTM(3, 8, p, input_p).double(), torch.randn(4, 9, 3).double()
    seed_all(1); ours = rnn(x)
    seed_all(1)
    W = drop_weights(rnn.weight_ih_l0, input_p) if input_p else rnn.weight_ih_l0
    U = drop_weights(rnn.weight_hh_l0, p) if p else rnn.weight_hh_l0
    zeros = torch.zeros(4, 8).double()
    assert_close(ours, slow_lstm(x, (zeros, zeros), W, U, rnn.bias_ih_l0 + rnn.bias_hh_l0))
    ours[0].sum().backward()
    assert torch.equal(rnn.weight_hh_l0.grad == 0, U == 0)
    assert torch.equal(rnn.weight_ih_l0.grad == 0, W == 0)


def test_gradients_can_be_asked_for_in_evaluation():
    rnn,x = WeightDropLSTM(3, 4, .5).eval(), torch.randn(2, 5, 3, requires_grad=True)
    rnn(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0


# The encoder

@pytest.mark.parametrize('n_layers', [1, 2, 3, 4])
def test_in_evaluation_the_encoder_is_a_stack_of_lstms(n_layers):
    enc,ids = new_encoder(n_layers).eval(), torch.randint(VOCAB_SZ, (3, 7))
    sizes = [4] + [6] * (n_layers - 1) + [4]
    x,states = enc.embedding.weight[ids], []
    for rnn, n_in, n in zip(enc.rnns, sizes[:-1], sizes[1:]):
        lstm = nn.LSTM(n_in, n, batch_first=True).double()
        lstm.load_state_dict(rnn.state_dict())
        x,(h, c) = lstm(x)
        states.append((h[0], c[0]))
    out = enc(ids)
    assert_close(out.raw, x, atol=1e-12, rtol=1e-12)
    assert_close(out.state, tuple(states), atol=1e-12, rtol=1e-12)


def slow_encoder(enc, ids, state, p):
    "The paper in training: masks drawn in the order of the formula, then everything by slow loops."
    def mask(p, *shape): return dropout_mask(enc.embedding.weight, shape, p)
    def drop(weight, p): return weight * dropout_mask(weight, weight.shape, p)
    E,(bs, sl) = enc.embedding.weight, ids.shape
    m_embed,m_input = mask(p['embed_p'], VOCAB_SZ), mask(p['input_p'], bs, 1, 4)[:, 0]
    x = torch.stack([m_embed[w] * E[w] * m_input[k] for k in range(bs) for w in ids[k]]).view(bs, sl, -1)
    new_state = []
    for i, rnn in enumerate(enc.rnns):
        if i > 0:
            m_hidden = mask(p['hidden_p'], bs, 1, 6)[:, 0]
            x = torch.stack([x[k, t] * m_hidden[k] for k in range(bs) for t in range(sl)]).view(bs, sl, -1)
        W,U = drop(rnn.weight_ih_l0, p['input_weight_p']), drop(rnn.weight_hh_l0, p['weight_p'])
        x,new = slow_lstm(x, state[i], W, U, rnn.bias_ih_l0 + rnn.bias_hh_l0)
        new_state.append(new)
    return x, tuple(new_state)


def test_in_training_the_encoder_is_the_slow_loop_with_the_masks_given():
    p = dict(hidden_p=.3, input_p=.4, embed_p=.2, weight_p=.5, input_weight_p=.1)
    enc,ids = new_encoder(3, **p), torch.randint(2, VOCAB_SZ, (3, 5))  # padding would get no gradient
    state = tuple((torch.randn(3, n).double(), torch.randn(3, n).double()) for n in (6, 6, 4))
    seed_all(5); ours = enc(ids, state)
    seed_all(5); slow = slow_encoder(enc, ids, state, p)
    assert_close(tuple(ours), slow, atol=1e-12, rtol=1e-12)
    upstream = torch.randn_like(ours.raw)
    grads = [torch.autograd.grad(raw, list(enc.parameters()), upstream) for raw, _ in (ours, slow)]
    assert_close(*grads, atol=1e-12, rtol=1e-12)


def test_there_is_no_dropout_after_the_last_layer():
    enc = new_encoder(2, hidden_p=.9, input_p=0., embed_p=0., weight_p=0.)
    assert (enc(torch.randint(VOCAB_SZ, (4, 6))).raw != 0).all()
    assert len(enc.hidden_dps) == 1


def test_the_state_continues_a_text_exactly_and_carries_the_gradient():
    enc,ids = new_encoder().eval(), torch.randint(VOCAB_SZ, (2, 9))
    whole = enc(ids).raw
    first = enc(ids[:, :4])
    rest = enc(ids[:, 4:], first.state)
    assert_close(torch.cat([first.raw, rest.raw], 1), whole)
    grads = [torch.autograd.grad(out.sum(), list(enc.parameters())) for out in (rest.raw, whole[:, 4:])]
    assert_close(*grads)


def test_examples_do_not_see_each_other():
    enc,ids = new_encoder().eval(), torch.randint(VOCAB_SZ, (4, 6))
    assert_close(enc(ids).raw[2:3], enc(ids[2:3]).raw)


def test_memory_stays_time_first():
    raw = new_encoder(2)(torch.randint(VOCAB_SZ, (3, 7))).raw
    assert raw.shape == (3, 7, 4) and raw.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize('copy', [deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
def test_a_trained_encoder_can_be_copied(copy):
    enc,ids = new_encoder(), torch.randint(VOCAB_SZ, (2, 5))
    enc(ids).raw.sum().backward()
    assert_close(copy(enc).eval()(ids), enc.eval()(ids))


def test_training_goes_on_after_an_evaluation():
    enc,ids = new_encoder(), torch.randint(VOCAB_SZ, (2, 5))
    opt = torch.optim.SGD(enc.parameters(), lr=.1)
    for _ in range(2):
        before = deepcopy(enc.state_dict())
        enc.train()(ids).raw.sum().backward()
        opt.step()
        assert all(not torch.equal(p, before[name]) for name, p in enc.named_parameters())
        with torch.no_grad(): assert_close(enc.eval()(ids).raw, enc(ids).raw)


def test_two_forwards_before_one_backward():
    enc,ids = new_encoder(), torch.randint(VOCAB_SZ, (2, 5))
    def grads_of(losses): return torch.autograd.grad(sum(losses), list(enc.parameters()))
    def loss(seed):
        seed_all(seed)
        return enc(ids).raw.sin().sum()
    together = grads_of([loss(1), loss(2)])
    apart = [a + b for a, b in zip(grads_of([loss(1)]), grads_of([loss(2)]))]
    assert_close(list(together), apart)


def test_the_modules_hold_parameters_only():
    enc,ids = new_encoder(), torch.randint(VOCAB_SZ, (2, 5))
    before = {name: dict(m.__dict__) for name, m in enc.named_modules()}
    enc(ids)
    assert not list(enc.buffers())
    for name, m in enc.named_modules(): assert list(m.__dict__) == list(before[name])


def test_wrong_input_is_told():
    enc,ids = new_encoder(), torch.randint(VOCAB_SZ, (3, 5))
    state = enc(ids).state
    def fails(message): return pytest.raises(ValueError, match=message)
    with fails('batch of 3 and the ids are of a batch of 2: start with state=None'): enc(ids[:2], state)
    with fails('The state has 2 layers and the encoder 3'): enc(ids, state[:2])
    with pytest.raises(IndexError, match='out of range'): enc(ids + VOCAB_SZ)
    with fails('train a second model with backwards=True'): AWD_LSTM(9, 4, 6, 3, bidir=True)
    with fails('pad_token=9 is not in a vocabulary of 9 words'): AWD_LSTM(9, 4, 6, 3, pad_token=9)
    with fails('hidden_p=1.5 is no dropout probability'): AWDLSTMConfig(hidden_p=1.5)
    with fails('n_layers=0: use at least 1'): AWDLSTMConfig(n_layers=0)


# Configuration

def test_presets_have_their_sizes():
    sizes = {name: (c.emb_sz, c.n_hid, c.n_layers) for name, c in presets.items()}
    assert sizes == dict(laptop=(200, 600, 2), small=(200, 600, 3), base=(400, 1152, 3), paper=(400, 1150, 3))
    vocab_sz = 33278
    n_params = sum(p.numel() for p in AWD_LSTM.from_config(vocab_sz, presets['paper']).parameters()) + vocab_sz
    assert n_params == 33_556_078  # "33M", Merity et al. 2017, Table 2
    assert presets['paper'].macs_per_token(vocab_sz) == 20_190_000 + 400 * vocab_sz


def test_a_configuration_can_be_given_in_four_ways():
    assert AWDLSTMConfig.from_any() == AWDLSTMConfig() == presets['base']
    assert AWDLSTMConfig.from_any('paper') is presets['paper']
    assert AWDLSTMConfig.from_any(presets['small']) is presets['small']
    clas = AWDLSTMConfig.from_any(dict(n_hid=8), awd_lstm_clas_config)
    assert (clas.n_hid, clas.output_p, clas.tie_weights) == (8, .4, True)


def test_drop_mult_scales_every_dropout_and_nothing_else():
    half,whole = AWDLSTMConfig(input_weight_p=.2).scaled(.5), AWDLSTMConfig(input_weight_p=.2)
    for name in whole.__dict__:
        value = getattr(whole, name)
        assert getattr(half, name) == (.5 * value if name.endswith('_p') else value)
