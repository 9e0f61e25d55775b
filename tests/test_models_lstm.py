"The kernels of an LSTM: the sweep is the loop in float64, and near it in bfloat16; one step; weights in one buffer."
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.models.awd_lstm import AWD_LSTM
from awdtext.models.gru import WeightDropGRU
from awdtext.models.language_model import get_language_model
from awdtext.models.lstm import (
    WeightDropLSTM, in_one_buffer, lstm_kernel, lstm_loop, lstm_sweep, lstm_windows, repeated_product, sweep_saves)
from awdtext.models.qrnn import WeightDropQRNN

bf16 = {'device_type': 'cpu', 'dtype': torch.bfloat16}


def inputs(bs=3, seq_len=5, n_in=4, n_hid=6, dtype=torch.double, grad=True):
    seed_all(0)
    shapes = (bs, seq_len, n_in), (bs, n_hid), (bs, n_hid), (4*n_hid, n_in), (4*n_hid, n_hid), (4*n_hid,)
    return [torch.randn(*shape, dtype=dtype, requires_grad=grad) for shape in shapes]


def relative(rough, exact):
    rough,exact = rough.detach().double(), exact.detach().double()
    return float((rough - exact).norm() / exact.norm())


@pytest.mark.parametrize('sizes', [(1, 1, 1, 1), (3, 5, 4, 6), (7, 2, 1, 3), (1, 30, 5, 2)])
def test_in_float64_it_is_the_loop_with_all_gradients(sizes):
    args = inputs(*sizes)
    def value(out, state): return out.sin().sum() + (state[0] * state[1]).sum()
    sweep,loop = lstm_sweep(*args), lstm_loop(*args)
    assert_close(sweep, loop)
    assert_close(torch.autograd.grad(value(*sweep), args), torch.autograd.grad(value(*loop), args))


def in_turn(x, h, c, W, U, b, rows):
    "The loop, window after window, each from a copy of the state without its history."
    outs = []
    for i, part in enumerate(x.split(rows)):
        if i: h,c = (s[:len(part)].detach() for s in (h, c))
        out,(h, c) = lstm_loop(part, h, c, W, U, b)
        outs.append(out)
    return torch.cat(outs), (h, c)


@pytest.mark.parametrize('rows', [[3], [4, 4, 4], [5, 2, 2, 1], [1] * 7])
def test_windows_below_each_other_have_the_gradients_of_windows_in_turn(rows):
    x,h,c,*weights = inputs(bs=sum(rows))
    args = x, *(s.detach()[:rows[0]].requires_grad_() for s in (h, c)), *weights
    def value(out, state): return out.sin().sum() + (state[0] * state[1]).sum()
    sweep,slow = lstm_sweep(*args, rows), in_turn(*args, rows)
    assert_close(sweep, slow)
    assert_close(torch.autograd.grad(value(*sweep), args), torch.autograd.grad(value(*slow), args))


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_windows_are_the_same_however_they_are_read(grad, dtype, monkeypatch):
    "Together on a CPU that learns, else one after another; in float32 and in bfloat16."
    rows = [3, 2, 2]
    x,h,c,W,U,b = inputs(bs=7, dtype=torch.float32, grad=grad)
    h,c = h.detach()[:3], c.detach()[:3]
    swept = []
    def sweep(*args):
        swept.append(args[-1])
        return lstm_sweep(*args)
    monkeypatch.setattr('awdtext.models.lstm.lstm_sweep', sweep)
    monkeypatch.setattr('awdtext.models.lstm.sweep_saves', lambda *args: grad and dtype == torch.float32)
    with torch.autocast('cpu', dtype, enabled=dtype == torch.bfloat16):
        out,state = lstm_windows(x, h, c, rows, W, U, b, torch.zeros_like(b))
    assert (rows in swept) == grad
    exact,state_exact = in_turn(x, h, c, W, U, b, rows)
    tol = 1e-5 if dtype == torch.float32 else .02
    for ours, theirs in zip((out, *state), (exact, *state_exact)): assert_close(ours.float(), theirs, rtol=0, atol=tol)


@pytest.mark.parametrize('unused', range(3))
def test_what_the_loss_does_not_use_has_a_gradient_all_the_same(unused):
    args = inputs()
    def value(out, state): return sum(o.sum() for i, o in enumerate((out, *state)) if i != unused)
    for ours, loops in zip(*(torch.autograd.grad(value(*f(*args)), args) for f in (lstm_sweep, lstm_loop))):
        assert_close(ours, loops)


def test_a_frozen_input_costs_no_gradient():
    x,*rest = inputs()
    lstm_sweep(x.detach(), *rest)[0].sum().backward()
    assert x.grad is None and all(o.grad is not None for o in rest)
    out,_ = lstm_sweep(*inputs(grad=False))
    assert not out.requires_grad


def test_there_is_no_second_derivative():
    args = inputs()
    first = torch.autograd.grad(lstm_sweep(*args)[0].sum(), args, create_graph=True)
    with pytest.raises(RuntimeError, match='does not require grad'): torch.autograd.grad(first[0].sum(), args)


@pytest.mark.parametrize('n_hid', [32, 100])
def test_in_bfloat16_it_is_as_near_as_eight_bits_allow(n_hid):
    args = inputs(bs=8, seq_len=20, n_in=32, n_hid=n_hid, dtype=torch.float32)
    with torch.no_grad(): [w.mul_(n_hid ** -.5) for w in args[3:5]]
    with torch.autocast(**bf16): out,(h, c) = lstm_kernel(*args, torch.zeros(4*n_hid))
    exact,(h_exact, c_exact) = lstm_loop(*args)
    assert out.dtype == torch.bfloat16 and h.dtype == c.dtype == torch.float32
    assert max(relative(out, exact), relative(h, h_exact), relative(c, c_exact)) < .01
    ours,loops = (torch.autograd.grad(o.float().sin().sum(), args) for o in (out, exact))
    for g, exact_g in zip(ours, loops): assert g.dtype == torch.float32 and relative(g, exact_g) < .02


def test_in_bfloat16_the_cell_adds_up_what_eight_bits_would_lose():
    n,U = 4, torch.zeros(16, 4)
    b = torch.tensor([-7., 30., 30., 30.]).repeat_interleave(n)        # i = 0.0009, f = c_new = o = 1
    with torch.no_grad(), torch.autocast(**bf16):
        _,(_, c) = lstm_sweep(torch.zeros(2, 200, 3), torch.zeros(2, n), torch.ones(2, n), torch.zeros(16, 3), U, b)
    expected = 1 + 200 * torch.tensor(-7.).sigmoid()
    assert_close(c, expected.expand(2, n), rtol=0, atol=2e-3)  # each is too little for bfloat16 to add to 1


def test_in_bfloat16_nothing_larger_is_kept_for_the_backward_pass():
    args = inputs(dtype=torch.float32)
    with torch.autocast(**bf16): out,_ = lstm_sweep(*args)
    node = out.grad_fn
    while not hasattr(node, 'saved_tensors'): node = node.next_functions[0][0]
    assert {o.dtype for o in node.saved_tensors} == {torch.bfloat16}


def test_the_product_that_is_prepared_is_the_product():
    seed_all(0)
    for dtype in (torch.bfloat16, torch.float32):
        for n_out, n_in, rows in ((64, 16, 5), (7, 3, 1), (100, 33, 80)):
            weight,x = torch.randn(n_out, n_in).to(dtype), torch.randn(rows, n_in).to(dtype)
            assert relative(repeated_product(weight, rows)(x), x @ weight.T) < .01


def test_without_these_operations_it_is_the_same(monkeypatch):
    args = inputs(bs=8, seq_len=20, n_in=32, n_hid=32, dtype=torch.float32)
    def run():
        with torch.autocast(**bf16): return lstm_sweep(*args)[0]
    prepared = run()
    monkeypatch.setattr('awdtext.models.lstm.has_onednn', lambda x: False)
    assert relative(run(), prepared) < .01


def test_documents_begin_anew_in_bfloat16_too():
    seed_all(0)
    rnn,x = WeightDropLSTM(8, 8).eval(), torch.randn(2, 6, 8)
    starts = torch.zeros(2, 6, dtype=torch.bool)
    starts[1, 3] = True
    with torch.autocast(**bf16), torch.no_grad():
        out,_ = rnn(x, None, starts)
        alone,_ = rnn(x[1:, 3:])
    assert relative(out[1:, 3:], alone) < .01


def test_a_model_learns_in_bfloat16_what_it_learns_in_float32():
    seed_all(0)
    text = torch.arange(400).remainder(7).view(8, 50)                  # each word tells the next one
    losses = {}
    for name, enabled in (('fp32', False), ('bf16', True)):
        seed_all(0)
        model = get_language_model(7, dict(emb_sz=16, n_hid=24, n_layers=2), drop_mult=.2)
        opt = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(40):
            with torch.autocast(**bf16, enabled=enabled):
                loss = model.loss(model(text[:, :-1]).dropped, text[:, 1:])
            opt.zero_grad()
            loss.backward()
            opt.step()
        losses[name] = loss.item()
    assert losses['fp32'] < .3 and abs(losses['bf16'] - losses['fp32']) < .1
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_state_goes_from_window_to_window_and_between_precisions():
    seed_all(0)
    encoder = AWD_LSTM(20, emb_sz=16, n_hid=24, n_layers=2).eval()
    ids = torch.randint(20, (3, 12))
    with torch.no_grad():
        exact = encoder(ids)
        with torch.autocast(**bf16):
            whole,first = encoder(ids), encoder(ids[:, :5])
            rest = encoder(ids[:, 5:], first.state)
        mixed = deepcopy(encoder)(ids[:, 5:], first.state)             # float32 goes on from bfloat16's state
    assert_close(rest.raw, whole.raw[:, 5:])
    assert relative(whole.raw, exact.raw) < .02 and relative(mixed.raw, exact.raw[:, 5:]) < .02


@pytest.mark.parametrize('seq_len', [1, 2])
def test_the_kernel_is_the_loop_over_one_step_and_more(seq_len):
    *rest,b = inputs(seq_len=seq_len, dtype=torch.float)
    halves = (b / 4, 3 * b / 4)
    def value(out, state): return out.sin().sum() + (state[0] * state[1]).sum()
    kernel,loop = lstm_kernel(*rest, *halves), lstm_loop(*rest, b)
    assert_close(kernel, loop)
    assert_close(torch.autograd.grad(value(*kernel), [*rest, b]), torch.autograd.grad(value(*loop), [*rest, b]))


def test_weights_in_one_buffer_keep_values_and_gradients():
    weights = inputs()[3:]
    together = in_one_buffer(*weights)
    assert_close(together, weights)
    places = [w.data_ptr() for w in together]
    assert places[1:] == [p + 8 * w.numel() for p, w in zip(places, weights)][:-1]
    grads = torch.autograd.grad(sum((w**2).sum() for w in together), weights)
    assert_close(list(grads), [2 * w for w in weights])


class OnGPU(torch.Tensor):
    "Says that it is on a GPU."
    device,is_cuda = torch.device('cuda'), True


@pytest.mark.parametrize('make,kernel', [(WeightDropLSTM, 'lstm'), (WeightDropGRU, 'gru')])
@pytest.mark.parametrize('dtype', [None, torch.float16, torch.bfloat16])
def test_what_a_gpu_is_given(make, kernel, dtype, monkeypatch):
    """All in the dtype that was asked for, the weights one behind the other, and no autocast: under it torch casts
    them to float16, whatever their dtype is."""
    calls,real = [], getattr(torch, kernel)
    def looked_at(x, hx, weights, *rest):
        calls.append(([x, *(hx if isinstance(hx, list) else [hx]), *weights], torch.is_autocast_enabled('cuda')))
        return real(x.float(), [o.float() for o in hx] if isinstance(hx, list) else hx.float(),
                    [w.float() for w in weights], *rest)
    monkeypatch.setattr(torch, kernel, looked_at)
    rnn,x = make(4, 6, weight_p=.5), torch.randn(3, 5, 4).as_subclass(OnGPU)
    if dtype:
        torch.set_autocast_enabled('cuda', True)
        torch.set_autocast_dtype('cuda', dtype)
    try: out,state = rnn(x)
    finally: torch.set_autocast_enabled('cuda', False)
    (tensors,autocast), = calls
    assert {t.dtype for t in tensors} == {dtype or torch.float32} and not autocast
    weights = tensors[-4:]
    assert len({w.untyped_storage().data_ptr() for w in weights}) == 1
    assert [w.storage_offset() for w in weights] == [sum(w.numel() for w in weights[:i]) for i in range(4)]
    out.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in rnn.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize('make', [WeightDropLSTM, WeightDropGRU])
def test_on_cuda_the_same_without_a_word(make, recwarn):
    rnn,x = make(4, 16).double(), torch.randn(3, 70, 4, dtype=torch.double)
    here,_ = rnn(x)
    grads = torch.autograd.grad(here.sin().sum(), list(rnn.parameters()))
    there,_ = rnn.cuda()(x.cuda())
    assert_close(there.cpu(), here)
    assert_close([g.cpu() for g in torch.autograd.grad(there.sin().sum(), list(rnn.parameters()))], list(grads))
    assert not [w for w in recwarn if 'contiguous' in str(w.message)]


@pytest.mark.gpu
@pytest.mark.parametrize('make', [WeightDropLSTM, WeightDropGRU])
def test_bfloat16_on_cuda_keeps_small_gradients(make, recwarn):
    "float16, to which torch's autocast would cast them, has nothing between 0 and 6e-8."
    rnn,x = make(4, 16).cuda(), torch.randn(3, 70, 4, device='cuda')
    exact = torch.autograd.grad(1e-9 * rnn(x)[0].sum(), list(rnn.parameters()))
    with torch.autocast('cuda', dtype=torch.bfloat16): out,_ = rnn(x)
    assert out.dtype == torch.bfloat16
    rough = torch.autograd.grad(1e-9 * out.float().sum(), list(rnn.parameters()))
    assert all(relative(r, e) < .05 for r, e in zip(rough, exact))
    assert not [w for w in recwarn if 'contiguous' in str(w.message)]


@pytest.mark.parametrize('make', [WeightDropLSTM, WeightDropGRU, WeightDropQRNN])
def test_sizes_that_do_not_fit_are_an_error_and_no_foreign_memory(make):
    "Torch's kernel for an LSTM on a CPU compares nothing and reads on behind the end."
    rnn,x = make(4, 3), torch.randn(2, 5, 4)
    n_states = len(rnn(x)[1])
    for bad in (x[..., :3], torch.randn(2, 5, 40)):
        with pytest.raises((ValueError, RuntimeError)): rnn(bad)
    for shape in ((2, 2), (2, 300), (3, 3), (1, 3)):
        with pytest.raises((ValueError, RuntimeError)): rnn(x, tuple(torch.zeros(shape) for _ in range(n_states)))
    for sizes in ((0, 3), (4, 0), (-1, 3), (4, 2.5)):
        with pytest.raises(ValueError, match='use a whole number'): make(*sizes)


def test_in_float32_training_it_is_the_loop_where_there_is_much_to_multiply():
    *rest,b = inputs(bs=32, seq_len=3, n_in=1000, n_hid=800, dtype=torch.float)
    with torch.no_grad(): [w.mul_(.03) for w in rest[3:]]
    assert sweep_saves(rest[0], *rest[3:])
    kernel,loop = lstm_kernel(*rest, b, 0*b), lstm_loop(*rest, b)
    assert 'Sweep' in kernel[0].grad_fn.next_functions[0][0].name()
    assert_close(kernel, loop)
    for ours, loops in zip(*(torch.autograd.grad(out.sin().sum(), [*rest, b]) for out, _ in (kernel, loop))):
        assert relative(ours, loops) < 1e-5


def test_it_keeps_gates_and_states_and_no_more():
    *rest,b = inputs(bs=32, seq_len=3, n_in=1000, n_hid=800, dtype=torch.float)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lstm_kernel(*rest, b, 0*b)
    own = {t.data_ptr(): t.numel() for t in kept if t.data_ptr() not in {o.data_ptr() for o in rest}}
    rows = 32 * 3
    assert sum(own.values()) <= rows * 4 * 800 + 2 * (rows + 32) * 800 + rows * 1000   # and the input, time first
