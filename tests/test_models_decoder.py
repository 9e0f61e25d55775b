"The fused loss against torch's, and the language model around it."
import math
import pickle
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_models_dropout import LargestResult
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from awdtext.core import seed_all
from awdtext.models import decoder
from awdtext.models.awd_lstm import AWDLSTMConfig
from awdtext.models.decoder import LinearDecoder, linear_cross_entropy, linear_nll
from awdtext.models.decoders import AdaptiveDecoder, MixtureDecoder
from awdtext.models.language_model import LanguageModel, encoders, get_language_model, lm_split


def problem(n=23, vocab_sz=17, n_hid=6, dtype=torch.float64, ignored=4):
    "Hidden states, weights and a bias to differentiate, and targets of which some do not count."
    shapes = (n, n_hid), (vocab_sz, n_hid), (vocab_sz,)
    h,W,b = (torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes)
    t = torch.randint(vocab_sz, (n,))
    t[torch.randperm(n)[:ignored]] = -100
    return h, W, b, t


def torchs(h, W, b, t, reduction='mean'): return F.cross_entropy(F.linear(h, W, b), t, reduction=reduction)


# The fused loss

@pytest.mark.parametrize('chunk', [None, 1, 5, 19, 23, 1000])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('ignored', [0, 4])
def test_value_and_gradients_are_torchs(chunk, reduction, ignored):
    h,W,b,t = problem(ignored=ignored)
    ours = linear_cross_entropy(h, W, b, t, reduction=reduction, chunk=chunk)
    other = torchs(h, W, b, t, reduction)
    assert_close(ours, other)
    assert_close(torch.autograd.grad(ours, (h, W, b)), torch.autograd.grad(other, (h, W, b)))


def test_float32_is_exact_at_the_size_of_a_model():
    h,W,b,t = problem(500, 3000, 50, torch.float32)
    ours,other = linear_cross_entropy(h, W, b, t, chunk=64), torchs(h.double(), W.double(), b.double(), t)
    assert_close(ours.double(), other, rtol=1e-6, atol=0)
    for g, exact in zip(torch.autograd.grad(ours, (h, W, b)), torch.autograd.grad(other, (h, W, b))):
        assert_close(g, exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_gradcheck(reduction):
    *inputs,t = problem(6, 5, 3)
    def loss(*inputs): return 3 * linear_cross_entropy(*inputs, t, reduction=reduction, chunk=4)
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize('needs', [(h, w, b) for h in (0, 1) for w in (0, 1) for b in (0, 1) if h + w + b])
def test_only_the_gradients_asked_for_are_made(needs):
    *inputs,t = problem()
    for o, need in zip(inputs, needs): o.requires_grad_(bool(need))
    (2.5 * linear_cross_entropy(*inputs, t, chunk=8)).backward()
    ours = [o.grad for o in inputs]
    for o in inputs: o.grad = None
    (2.5 * torchs(*inputs, t)).backward()
    for g, o, need in zip(ours, inputs, needs):
        if need: assert_close(g, o.grad)
        else: assert g is None


def test_without_bias():
    h,W,_,t = problem()
    ours,other = linear_cross_entropy(h, W, None, t), torchs(h, W, None, t)
    assert_close(torch.autograd.grad(ours, (h, W)), torch.autograd.grad(other, (h, W)))


def test_two_losses_and_two_backward_passes():
    h,W,b,t = problem()
    loss = 2 * linear_cross_entropy(h, W, b, t) + linear_cross_entropy(h.sin(), W, b, t)
    loss.backward(retain_graph=True)
    once = W.grad.clone()
    loss.backward()
    assert_close(W.grad, 2 * once)


def test_without_grad_only_the_loss_is_computed(monkeypatch):
    def wasted(*args): raise AssertionError("gradients were computed")
    monkeypatch.setattr(decoder, 'add_grads', wasted)
    h,W,b,t = problem(2000, 30)
    with torch.no_grad(), LargestResult() as largest: loss = linear_cross_entropy(h, W, b, t, chunk=10)
    assert not loss.requires_grad
    assert_close(loss, torchs(h, W, b, t).detach())
    assert largest.n <= h.numel()
    frozen = linear_cross_entropy(h.detach(), W.detach(), b.detach(), t)
    assert not frozen.requires_grad


def test_the_whole_logits_are_never_made():
    h,W,b,t = problem(400, 100, 5)
    with LargestResult() as largest: linear_cross_entropy(h, W, b, t, chunk=20).backward()
    assert largest.n <= 20 * 100
    with LargestResult() as largest: torchs(h, W, b, t).backward()
    assert largest.n == 400 * 100


def test_a_very_unlikely_target_costs_what_it_costs():
    W,h = torch.tensor([[2000.], [0.], [-500.]], requires_grad=True), torch.ones(2, 1, requires_grad=True)
    loss = linear_cross_entropy(h, W, None, torch.tensor([1, 2]), reduction='sum')
    assert loss.item() == 2000 + 2500
    loss.backward()
    assert_close(W.grad[:, 0], torch.tensor([2., -1., -1.]))
    assert_close(h.grad[:, 0], torch.tensor([2000., 2500.]))


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('smoothing', [.1, .5])
def test_label_smoothing_is_torchs(smoothing, reduction):
    h,W,b,t = problem()
    how = dict(reduction=reduction, label_smoothing=smoothing)
    ours,other = linear_cross_entropy(h, W, b, t, chunk=4, **how), F.cross_entropy(F.linear(h, W, b), t, **how)
    assert (t == -100).any()
    assert_close(ours, other)
    assert_close(torch.autograd.grad(ours, (h, W, b)), torch.autograd.grad(other, (h, W, b)))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_losses_are_the_same_where_values_may_not_be_looked_at(dtype):
    h,W,b = (torch.randn(*shape).to(dtype) for shape in ((30, 8), (50, 8), (50,)))
    h[:10] *= 100                                             # targets that are too unlikely for the dtype
    t,(z, other) = torch.randint(50, (30,)), torch.empty(2, 30, 50, dtype=dtype)
    looked = decoder.chunk_nll(h, W, b, t, z)
    assert (z[torch.arange(30), t] == 0).any()
    unseen = decoder.chunk_nll(h, W, b, t, other, look=False)
    assert_close(unseen, looked, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else .02)
    assert_close(looked, F.cross_entropy(F.linear(h, W, b).float(), t, reduction='none'), rtol=1e-5, atol=.02)


def test_what_does_not_count_may_be_anything():
    h,W,b,t = problem()
    expected = linear_cross_entropy(h, W, b, t)
    spoilt = h.detach().masked_fill((t == -100)[:, None], float('nan')).requires_grad_()
    loss = linear_cross_entropy(spoilt, W, b, t)
    loss.backward()
    assert loss == expected and W.grad.isfinite().all() and (spoilt.grad[t == -100] == 0).all()


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_no_targets_cost_nothing(reduction):
    h,W,b,t = problem()
    loss = linear_cross_entropy(h, W, b, torch.full_like(t, -100), reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    for o in (h, W, b): assert (o.grad == 0).all()
    assert linear_cross_entropy(h[:0], W, b, t[:0], reduction=reduction).item() == 0


def test_another_value_can_be_ignored():
    h,W,b,t = problem(ignored=0)
    expected = F.cross_entropy(F.linear(h, W, b), t, ignore_index=3)
    assert_close(linear_cross_entropy(h, W, b, t, ignore_index=3), expected)


def test_bfloat16_sums_in_float32():
    h,W,b,t = problem(600, 300, 32, torch.bfloat16)
    ours,exact = linear_cross_entropy(h, W, b, t, chunk=50), torchs(h.double(), W.double(), b.double(), t)
    assert ours.dtype == torch.float32
    assert_close(ours.double(), exact, rtol=5e-3, atol=0)
    for g, e, o in zip(torch.autograd.grad(ours, (h, W, b)), torch.autograd.grad(exact, (h, W, b)), (h, W, b)):
        assert g.dtype == o.dtype
        assert (g - e).norm() < .02 * e.norm()


def test_autocast_multiplies_in_bfloat16_and_keeps_the_gradients_dtype():
    h,W,b,t = problem(60, 30, 8, torch.float32)
    exact = linear_cross_entropy(h, W, b, t)
    with torch.autocast('cpu', torch.bfloat16): rough = linear_cross_entropy(h, W, b, t)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs() < .02
    assert torch.autograd.grad(rough, W)[0].dtype == torch.float32


def test_the_gradient_of_a_gradient_is_refused():
    h,W,b,t = problem()
    with pytest.raises(RuntimeError, match='no second derivative: use F.cross_entropy'):
        torch.autograd.grad(linear_cross_entropy(h, W, b, t), h, create_graph=True)


@pytest.mark.parametrize('target', [17, -1, -99])
def test_a_target_that_is_no_word_is_named(target):
    h,W,b,t = problem()
    t[3] = target
    with pytest.raises(ValueError, match=f'Target {target} is no id of a vocabulary of 17 words: use 0 to 16, or -100'):
        linear_cross_entropy(h, W, b, t)


def test_wrong_arguments_are_told():
    h,W,b,t = problem()
    def fails(message): return pytest.raises(ValueError, match=message)
    with fails("reduction='none': use 'mean' or 'sum'"): linear_cross_entropy(h, W, b, t, reduction='none')
    with fails(r'hidden is \(23, 6\), targets \(22,\)'): linear_cross_entropy(h, W, b, t[1:])
    with fails('chunk=0: use at least 1'): linear_cross_entropy(h, W, b, t, chunk=0)
    with fails('label_smoothing=1.0: use 0 or more'): linear_cross_entropy(h, W, b, t, label_smoothing=1.)


# The language model

def new_lm(**settings): return get_language_model(20, dict(emb_sz=4, n_hid=6) | settings).double()


@pytest.mark.parametrize('tie_weights', [True, False])
@pytest.mark.parametrize('out_bias', [True, False])
def test_loss_is_the_cross_entropy_of_the_logits(tie_weights, out_bias):
    lm,ids = new_lm(tie_weights=tie_weights, out_bias=out_bias), torch.randint(20, (3, 6))
    y = torch.randint(20, (3, 6))
    y[1, 2:] = -100
    out = lm(ids)
    ours,other = lm.loss(out.dropped, y), F.cross_entropy(lm.logits(out.dropped).transpose(1, 2), y)
    assert_close(ours, other)
    params = list(lm.parameters())
    assert_close(torch.autograd.grad(ours, params, retain_graph=True), torch.autograd.grad(other, params))


def test_output_dropout_is_variational_and_only_in_dropped():
    lm,ids = new_lm(output_p=.5, hidden_p=0., input_p=0., embed_p=0., weight_p=0.), torch.randint(20, (3, 6))
    out = lm(ids)
    assert_close(out.raw, lm.eval()(ids).raw)
    mask = out.dropped / out.raw
    assert_close(mask, mask[:, :1].round().expand_as(mask))
    assert set(mask.round().unique().tolist()) == {0., 2.}


def test_tied_weights_are_one_parameter_with_both_gradients():
    lm,ids = new_lm(), torch.randint(2, 20, (3, 6))
    assert sum(p.numel() for p in lm.parameters()) == sum(p.numel() for p in lm.encoder.parameters()) + 20
    lm.loss(lm(ids).dropped, ids).backward()
    unread = [w for w in range(20) if not (ids == w).any()]
    assert (lm.encoder.embedding.weight.grad[unread].abs().sum(1) > 0).all()  # from the decoder alone


def test_a_tied_model_fits_into_a_safe_file(tmp_path):
    lm,other,ids = new_lm(), new_lm(), torch.randint(20, (3, 6))
    save_file(lm.state_dict(), tmp_path/'lm.safetensors')
    other.load_state_dict(load_file(tmp_path/'lm.safetensors'))
    assert_close(other.eval()(ids).raw, lm.eval()(ids).raw)


@pytest.mark.parametrize('copy', [deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
def test_a_copy_is_tied_to_its_own_embedding(copy):
    lm,ids = new_lm(), torch.randint(20, (3, 6))
    lm.loss(lm(ids).dropped, ids).backward()
    twin = copy(lm)
    with torch.no_grad(): twin.encoder.embedding.weight.zero_()
    assert (twin.eval().logits(twin(ids).dropped) == 0).all()
    assert (lm.eval().logits(lm(ids).dropped) != 0).any()


def test_the_decoder_starts_as_the_papers():
    fresh = LinearDecoder(1000, 40)
    assert (fresh.bias == 0).all()
    assert .099 < fresh.weight.abs().max() <= .1


def test_a_fresh_model_knows_nothing():
    lm,ids = get_language_model(500, 'small').eval(), torch.randint(500, (4, 20))
    with torch.no_grad(): assert abs(lm.loss(lm(ids).dropped, ids.roll(-1, 1)).item() - math.log(500)) < .02


def test_groups_cover_every_parameter_once():
    for lm in (new_lm(), new_lm(tie_weights=False), new_lm(n_layers=1)):
        groups = [id(p) for group in lm_split(lm) for p in group]
        assert sorted(groups) == sorted(id(p) for p in lm.parameters())
        assert len(lm_split(lm)) == lm.encoder.n_layers + 1


def test_the_same_seed_gives_the_same_training_step():
    def step():
        seed_all(7)
        lm,ids = new_lm(), torch.randint(20, (3, 6))
        loss = lm.loss(lm(ids).dropped, ids)
        loss.backward()
        return loss, lm.encoder.embedding.weight.grad
    assert_close(step(), step(), atol=0, rtol=0)


def test_configuration_errors_reach_the_user():
    def fails(message): return pytest.raises(ValueError, match=message)
    with fails("There is no preset 'large': use one of laptop, small, base, paper"): get_language_model(20, 'large')
    with fails('config has no setting hidden: it can have emb_sz'): get_language_model(20, dict(hidden=3))
    with fails('input_p=1.25 is no dropout'): get_language_model(20, drop_mult=5.)
    with fails('p=2 is no dropout'): LanguageModel(new_lm().encoder, output_p=2)


# Losses one by one

@pytest.mark.parametrize('chunk', [None, 1, 5, 23, 100])
def test_each_loss_and_its_gradient_are_torchs(chunk):
    h,W,b,t = problem(ignored=0)
    upstream = torch.randn(len(t)).double()
    ours,other = linear_nll(h, W, b, t, chunk), F.cross_entropy(F.linear(h, W, b), t, reduction='none')
    assert_close(ours, other)
    assert_close(torch.autograd.grad(ours, (h, W, b), upstream), torch.autograd.grad(other, (h, W, b), upstream))


def test_one_by_one_the_whole_logits_are_never_kept():
    h,W,b,t = problem(400, 100, 5, ignored=0)
    with LargestResult() as largest: linear_nll(h, W, b, t, chunk=20).sum().backward()
    assert largest.n <= 20 * 100


# Mixture of softmaxes

def slow_mixture(mos, h, W, b):
    "Log-probabilities by the formula, one state and one expert at a time."
    Wl,bl = mos.latent.weight.view(mos.n_experts, -1, h.shape[-1]), mos.latent.bias.view(mos.n_experts, -1)
    rows = []
    for state in h.flatten(0, -2):
        pi = torch.softmax(mos.prior.weight @ state, 0)
        rows.append(sum(pi[k] * torch.softmax(W @ torch.tanh(Wl[k] @ state + bl[k]) + b, 0) for k in range(len(pi))))
    return torch.stack(rows).log().view(*h.shape[:-1], -1)


def new_mixture(**settings): return MixtureDecoder(9, 5, 4, **dict(n_experts=3) | settings).double()


def test_the_mixture_is_the_formula_in_value_and_gradients():
    mos,h,t = new_mixture(latent_p=0.), torch.randn(2, 6, 5).double().requires_grad_(), torch.randint(9, (2, 6))
    with torch.no_grad(): mos.bias.normal_()
    t[1, 3:] = -100
    slow = slow_mixture(mos, h, mos.weight, mos.bias)
    assert_close(mos(h), slow, atol=1e-12, rtol=1e-12)
    each = F.cross_entropy(slow.transpose(1, 2), t, reduction='none')
    assert_close(mos.nll(h, t), each)
    assert_close(mos.loss(h, t), each.sum() / (t >= 0).sum())
    inputs = [h, *mos.parameters()]
    assert_close(torch.autograd.grad(mos.loss(h, t), inputs), torch.autograd.grad(each.sum() / (t >= 0).sum(), inputs))
    assert_close(mos(h[0, 0]), slow[0, 0])


def test_one_softmax_is_a_mixture_of_one():
    mos,h = new_mixture(n_experts=1).eval(), torch.randn(2, 3, 5).double()
    assert_close(mos(h), F.linear(mos.latent(h).tanh(), mos.weight, mos.bias).log_softmax(-1))


def test_the_mixture_has_a_higher_rank_than_one_softmax():
    "What it is for: the matrix of log-probabilities of many contexts, whose rank a softmax bounds by `n_hid + 1`."
    h = torch.randn(200, 5).double()
    plain,mos = LinearDecoder(40, 5).double(), MixtureDecoder(40, 5, 5, n_experts=4).double().eval()
    with torch.no_grad():
        for p in (*plain.parameters(), *mos.parameters()): p.normal_()
        ranks = [torch.linalg.matrix_rank(o.log_softmax(-1), rtol=1e-6).item() for o in (plain(h), mos(h))]
    assert ranks[0] <= 7 < ranks[1]


def test_the_latent_dropout_is_variational():
    mos,h = new_mixture(latent_p=.5), torch.randn(3, 6, 5).double()
    _,latents = mos._experts(h)
    mask = latents.detach() / mos.eval()._experts(h)[1].detach()
    assert set(mask.round().unique().tolist()) == {0., 2.}
    assert_close(mask, mask[:, :1].expand_as(mask))
    assert not torch.equal(mask[0], mask[1])


def test_an_improbable_target_costs_what_it_should():
    mos,h = new_mixture(latent_p=0.), torch.randn(1, 1, 5).double()
    with torch.no_grad(): mos.bias[3] = -1000.
    assert 990 < mos.nll(h, torch.tensor([[3]])).item() < 1010


def test_the_mixtures_logits_are_never_kept():
    mos,h,t = MixtureDecoder(300, 4, 4, n_experts=5), torch.randn(1, 4000, 4), torch.randint(300, (1, 4000))
    with LargestResult() as largest: mos.loss(h, t).backward()
    assert largest.n <= 64 * 2**20 / 4 < 5 * 4000 * 300 * 4


# Adaptive softmax

def slow_adaptive(decoder, h, cutoffs):
    "Log-probabilities by torch's parameters: the head, and each cluster times its place in the head."
    s,n = decoder.softmax, cutoffs[0]
    head = s.head(h).log_softmax(-1)
    tails = [head[..., n+i:n+i+1] + tail(h).log_softmax(-1) for i, tail in enumerate(s.tail)]
    return torch.cat([head[..., :n], *tails], -1)


def test_the_adaptive_softmax_is_the_formula_in_value_and_gradients():
    decoder,h = AdaptiveDecoder(30, 16, [6, 15]).double(), torch.randn(2, 20, 16).double().requires_grad_()
    t = torch.randint(30, (2, 20))
    t[0, :5] = -100
    slow = slow_adaptive(decoder, h, [6, 15])
    assert_close(decoder(h), slow)
    each = F.cross_entropy(slow.transpose(1, 2), t, reduction='none')
    assert_close(decoder.nll(h, t), each)
    inputs = [h, *decoder.parameters()]
    assert_close(torch.autograd.grad(decoder.loss(h, t), inputs),
                 torch.autograd.grad(each.sum() / (t >= 0).sum(), inputs))


@pytest.mark.parametrize('cutoffs,says', [
    ([20, 10], 'whole numbers that increase, between 1 and 29'), ([10, 10], 'increase'), ([0], 'increase'),
    ([10, 30], 'increase'), ([10, 99], 'between 1 and 29'), ([1.5], 'whole numbers'), ([], 'too small'),
    (None, "use decoder='softmax'"), ([3, 6, 9], '3 cutoffs need an output of size 64')])
def test_impossible_cutoffs(cutoffs, says):
    with pytest.raises(ValueError, match=says): AdaptiveDecoder(30, 8, cutoffs)


# All decoders in the model

kin = {'softmax': {}, 'mos': dict(decoder='mos', n_experts=3, latent_p=0., n_hid_last=5),
       'adaptive': dict(decoder='adaptive', cutoffs=(5, 12), tie_weights=False, n_hid_last=16)}
each_decoder = pytest.mark.parametrize('settings', kin.values(), ids=kin)


@each_decoder
@pytest.mark.parametrize('arch', encoders)
def test_losses_are_those_of_the_logits_with_every_encoder(arch, settings):
    lm,ids,y = new_lm(arch=arch, **settings), torch.randint(20, (3, 6)), torch.randint(20, (3, 6))
    y[1, 2:] = -100
    dropped = lm(ids).dropped
    other = F.cross_entropy(lm.logits(dropped).transpose(1, 2), y, reduction='none')
    assert_close(lm.nll(dropped, y), other)
    assert_close(lm.loss(dropped, y), other.sum() / 14)
    params = list(lm.parameters())
    ours,theirs = (torch.autograd.grad(loss, params, retain_graph=True)
                   for loss in (lm.loss(dropped, y), other.sum() / 14))
    assert_close(ours, theirs)
    assert (lm.nll(dropped, y)[1, 2:] == 0).all()
    assert_close(lm.logits(dropped).double().softmax(-1).sum(-1), torch.ones(3, 6).double())


@each_decoder
def test_no_targets_cost_nothing_in_any_model(settings):
    lm,ids = new_lm(**settings), torch.randint(20, (3, 6))
    nothing = torch.full_like(ids, -100)
    loss = lm.loss(lm(ids).dropped, nothing)
    loss.backward()
    assert loss == 0 and lm.nll(lm(ids).dropped, nothing).eq(0).all()
    assert all(p.grad is None or p.grad.eq(0).all() for p in lm.parameters())


@each_decoder
def test_a_target_that_is_no_word_is_told(settings):
    lm,ids = new_lm(**settings), torch.randint(20, (3, 6))
    for f in (lm.loss, lm.nll):
        with pytest.raises(ValueError, match='Target 20 is no id of a vocabulary of 20 words'):
            f(lm(ids).dropped, torch.full_like(ids, 20))


@each_decoder
@pytest.mark.parametrize('copy', [deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
def test_a_trained_model_can_be_copied(settings, copy):
    lm,ids = new_lm(**settings), torch.randint(20, (3, 6))
    lm.loss(lm(ids).dropped, ids).backward()
    twin = copy(lm).eval()
    assert_close(twin.logits(twin(ids).dropped), lm.eval().logits(lm(ids).dropped))


class Answers(torch.nn.Module):
    "A language model as one program: ids and state in, logits and state out."
    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def forward(self, ids, state):
        out = self.lm(ids, state)
        return self.lm.logits(out.dropped), out.state


@each_decoder
@pytest.mark.parametrize('arch', encoders)
def test_an_exported_program_says_the_same(arch, settings):
    lm,ids = Answers(new_lm(arch=arch, **settings)).eval(), torch.randint(20, (3, 6))
    state = lm.lm(ids).state
    with torch.no_grad(): program = torch.export.export(lm, (ids, state)).module()
    assert_close(program(ids.flip(0), state), lm(ids.flip(0), state))


@each_decoder
def test_it_fits_into_a_safe_file_and_learns(tmp_path, settings):
    lm,ids = get_language_model(20, dict(emb_sz=8, n_hid=12) | settings), torch.randint(2, 20, (4, 9))
    opt,losses = torch.optim.Adam(lm.parameters(), lr=.02), []
    for _ in range(15):
        loss = lm.loss(lm(ids[:, :-1]).dropped, ids[:, 1:])
        loss.backward()
        opt.step(); opt.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - .3
    save_file(lm.state_dict(), tmp_path/'lm.safetensors')
    other = get_language_model(20, dict(emb_sz=8, n_hid=12) | settings)
    other.load_state_dict(load_file(tmp_path/'lm.safetensors'))
    assert_close(other.eval().logits(other(ids).dropped), lm.eval().logits(lm(ids).dropped))


@each_decoder
def test_autocast_works_in_bfloat16(settings):
    lm,ids = get_language_model(20, dict(emb_sz=8, n_hid=12) | settings).eval(), torch.randint(2, 20, (4, 9))
    exact = lm.nll(lm(ids).dropped, ids)
    with torch.autocast('cpu', torch.bfloat16):
        dropped = lm(ids).dropped
        each,loss = lm.nll(dropped, ids), lm.loss(dropped, ids)
    assert each.dtype == loss.dtype == torch.float32
    assert_close(each, exact, atol=.05, rtol=.05)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in lm.parameters())


def test_groups_of_the_kin_cover_every_parameter_once():
    for arch in encoders:
        for settings in kin.values():
            lm = new_lm(arch=arch, **settings)
            groups = [id(p) for group in lm_split(lm) for p in group]
            assert sorted(groups) == sorted(id(p) for p in lm.parameters())


def test_configurations_of_the_kin_that_are_impossible():
    def fails(message): return pytest.raises(ValueError, match=message)
    with fails('n_experts=0: use at least 1'): new_lm(decoder='mos', n_experts=0)
    with fails('n_experts=0: use at least 1'): MixtureDecoder(9, 5, 4, n_experts=0)
    with fails("decoder='moe': use one of 'softmax', 'mos', 'adaptive'"): new_lm(decoder='moe')
    with fails("use tie_weights=False with decoder='adaptive'"): new_lm(decoder='adaptive', cutoffs=[5])
    with fails('n_hid_last=5: leave n_hid_last out'): new_lm(n_hid_last=5)
    with fails('latent_p=1 is no dropout'): new_lm(decoder='mos', latent_p=1)
    assert new_lm(n_hid_last=5, tie_weights=False)(torch.zeros(1, 2).long()).raw.shape == (1, 2, 5)


def test_what_the_kin_cost():
    size = dict(emb_sz=4, n_hid=6, n_layers=2)
    def layers(**settings): return AWDLSTMConfig(**size | settings).macs_per_token(0)
    def weights(arch): return sum(p.numel() for p in encoders[arch].from_config(
        20, AWDLSTMConfig(**size, arch=arch)).rnns.parameters() if p.dim() == 2)
    for arch in encoders: assert layers(arch=arch) == weights(arch)
    mos = AWDLSTMConfig(**size, decoder='mos', n_experts=3).macs_per_token(10)
    assert mos == layers() + 3 * 4 * 10 + 3 * 4 + 4 * 3 * 4                 # softmaxes, prior, latent vectors
    assert AWDLSTMConfig(**size, n_hid_last=5, tie_weights=False).macs_per_token(10) == layers(n_hid_last=5) + 5 * 10


def test_what_an_adaptive_softmax_costs():
    "Torch's own count of a text in which Zipf's law holds exactly: of 25 words 12, 6, 4 and 3 are of one kind each."
    config = AWDLSTMConfig(emb_sz=32, decoder='adaptive', tie_weights=False, cutoffs=[2])
    y = torch.arange(4).repeat_interleave(torch.tensor([12, 6, 4, 3]))
    decoder = AdaptiveDecoder(4, 32, [2]).eval()
    with FlopCounterMode(display=False) as counter: decoder.softmax(torch.randn(25, 32), y)
    found = config.macs_per_token(4) - config.macs_per_token(0)
    assert abs(found - counter.get_total_flops() / 2 / 25) <= .5            # it is a whole number
    many = AWDLSTMConfig(decoder='adaptive', tie_weights=False).macs_per_token(267_735)
    usual = AWDLSTMConfig(decoder='adaptive', tie_weights=False, cutoffs=(2800, 20_000, 76_000))
    assert many == usual.macs_per_token(267_735) < AWDLSTMConfig().macs_per_token(267_735) / 4


def test_a_word_that_the_bias_forbids_spoils_no_row_that_does_not_count():
    h,W,b,t = torch.randn(3, 5), torch.randn(13, 5), torch.zeros(13), torch.tensor([1, -100, 3])
    b[0] = -torch.inf
    assert_close(linear_cross_entropy(h, W, b, t), F.cross_entropy(F.linear(h, W, b), t))


@pytest.mark.parametrize('smoothing', [0., .2])
def test_tied_weights_used_many_times_have_torchs_gradient(smoothing):
    "As embedding, as decoder and in a penalty; over several batches, each differentiated twice."
    batches = [(torch.randint(13, (9,)), torch.randint(13, (9,))) for _ in range(3)]
    for _, t in batches: t[2:5] = -100
    def grads(loss):
        seed_all(0)
        W,b = torch.randn(13, 5).double().requires_grad_(), torch.randn(13).double().requires_grad_()
        for ids, t in batches:
            l = loss(F.embedding(ids, W).tanh(), W, b, t)
            (3 * l + l**2 + W.pow(2).sum()).backward(retain_graph=True)
            (l / 2).backward()
        return W.grad, b.grad
    ours = grads(lambda h, W, b, t: linear_cross_entropy(h, W, b, t, chunk=4, label_smoothing=smoothing))
    assert_close(ours, grads(lambda h, W, b, t: F.cross_entropy(F.linear(h, W, b), t, label_smoothing=smoothing)))


def test_weights_changed_before_the_backward_pass_are_an_error():
    h,W = torch.randn(3, 5), torch.randn(13, 5, requires_grad=True)
    loss = linear_cross_entropy(h, W, None, torch.tensor([1, 2, 3]))
    with torch.no_grad(): W.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): loss.backward()
