"The three dropouts: the laws of their masks, and what a wrapper must not break."
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from awdtext.core import seed_all
from awdtext.models.dropout import (
    EmbeddingDropout,
    VariationalDropout,
    WeightDropout,
    drop_weights,
    dropout_mask,
    stand_in,
    variational_mask,
)


class LargestResult(TorchDispatchMode):
    "Records the number of elements of the largest tensor that any operation makes."
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for o in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(o, torch.Tensor) and not func.is_view: self.n = max(self.n, o.numel())
        return result


# The masks

@pytest.mark.parametrize('p', [1e-3, .02, .2, .5, .9, .999])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_a_mask_has_the_law_of_bernoulli(p, dtype):
    n,mask = 10**6, dropout_mask(torch.zeros(1, dtype=dtype), (1000, 1000), p)
    assert mask.dtype == dtype and mask.shape == (1000, 1000)
    dropped = (mask == 0)
    assert abs(dropped.sum() - n * p) < 5 * (n * p * (1 - p))**.5 + 1     # five standard deviations
    assert_close(mask[~dropped].double().unique(), torch.tensor([1 / (1 - p)]).double(), rtol=.01, atol=0)


@pytest.mark.parametrize('p', [.2, .5])
def test_draws_do_not_depend_on_each_other(p):
    "Four draws share one integer: pairs at every small distance are as often both dropped as chance has it."
    dropped = (dropout_mask(torch.zeros(1), (10**6,), p) == 0).double()
    for step in range(1, 9): assert abs((dropped[step:] * dropped[:-step]).mean() - p * p) < 5e-3 * p
    by_place = dropped.view(-1, 4).mean(0)
    assert (by_place - p).abs().max() < 5 * (p * (1 - p) / 250_000)**.5


def test_a_mask_keeps_the_expected_value():
    p,exact = .3, round(.3 * 2**16) / 2**16
    mask = dropout_mask(torch.zeros(1, dtype=torch.double), (10,), p)
    kept = mask[mask != 0][0].item()
    assert kept * (1 - exact) == pytest.approx(1, abs=1e-12)


def test_a_seed_gives_one_mask_and_moves_the_generator_on():
    def draw(): return dropout_mask(torch.zeros(1), (7, 5), .5)
    seed_all(3); a,b = draw(), draw()
    seed_all(3); assert torch.equal(draw(), a) and torch.equal(draw(), b) and not torch.equal(a, b)


def test_a_mask_on_another_device_needs_no_look_at_values():
    assert dropout_mask(torch.zeros(1, device='meta'), (3, 4), .5).shape == (3, 4)


def test_dropped_weights_and_their_gradient():
    w = torch.randn(20, 30, requires_grad=True)
    out = drop_weights(w, .4)
    out.sum().backward()
    assert_close(out.detach(), w.detach() * w.grad)
    assert .3 < (w.grad == 0).float().mean() < .5


# Variational dropout

@pytest.mark.parametrize('p', [.1, .5, .9])
def test_variational_mask_is_scaled_by_what_is_kept(p):
    mask = variational_mask(torch.zeros(100, 3, 200), p)
    kept = mask[mask != 0]
    assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=2**-17 / (1 - p), atol=0)  # the bound has 16 bits
    assert abs(len(kept) / mask.numel() - (1 - p)) < .01


def test_variational_dropout_is_the_same_at_every_time_step_and_not_in_every_example():
    y = VariationalDropout(.5)(torch.ones(8, 7, 50))
    assert (y == y[:, :1]).all()
    assert len(y[:, 0].unique(dim=0)) == 8


def test_variational_mask_is_of_the_inputs_dtype():
    assert VariationalDropout(.5)(torch.ones(2, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_no_dropout_gives_the_input_itself():
    x = torch.ones(2, 3, 4)
    assert VariationalDropout(0.)(x) is x
    assert VariationalDropout(.9).eval()(x) is x


def test_variational_dropout_keeps_memory_time_first():
    x = torch.ones(7, 3, 5).transpose(0, 1)
    assert VariationalDropout(.5)(x).transpose(0, 1).is_contiguous()


@pytest.mark.parametrize('p', [-.1, 1., 1.5, float('nan')])
@pytest.mark.parametrize('make', [VariationalDropout, lambda p: EmbeddingDropout(nn.Embedding(3, 2), p),
                                  lambda p: WeightDropout(nn.Linear(3, 2), p, 'weight')])
def test_a_wrong_probability_is_named(make, p):
    with pytest.raises(ValueError, match=f'p={p} is no dropout probability: use 0 <='): make(p)


# Embedding dropout

def test_all_occurrences_of_a_word_vanish_together():
    emb,ids = EmbeddingDropout(nn.Embedding(50, 4), .5), torch.randint(50, (9, 30))
    gone = (emb(ids) == 0).all(-1)
    for word in ids.unique(): assert gone[ids == word].unique().numel() == 1
    assert .2 < gone.float().mean() < .8


def test_embedding_dropout_is_a_lookup_in_a_matrix_with_dropped_rows():
    emb,ids,p = EmbeddingDropout(nn.Embedding(11, 4, padding_idx=1), .3), torch.randint(11, (3, 8)), .3
    seed_all(1); ours = emb(ids)
    seed_all(1); mask = dropout_mask(emb.weight, (11,), p)
    papers = F.embedding(ids, emb.weight * mask[:, None], padding_idx=1)
    assert_close(ours, papers)
    upstream = torch.randn_like(ours)
    assert_close(torch.autograd.grad(ours, emb.weight, upstream), torch.autograd.grad(papers, emb.weight, upstream))


def test_embedding_dropout_makes_nothing_as_large_as_the_vocabulary_times_the_embedding():
    emb = EmbeddingDropout(nn.Embedding(1000, 64), .5)
    with LargestResult() as largest: emb(torch.randint(1000, (2, 5)))
    assert largest.n == 1000


def test_an_id_outside_of_the_vocabulary_is_an_error_in_both_modes():
    emb = EmbeddingDropout(nn.Embedding(5, 2), .5)
    for mode in (True, False):
        with pytest.raises(IndexError): emb.train(mode)(torch.tensor([5]))


# Weight dropout

wrapped = dict(
    lstm=lambda: WeightDropout(nn.LSTM(4, 5, 2), .5, ['weight_hh_l0', 'weight_hh_l1', 'weight_ih_l1']),
    bilstm=lambda: WeightDropout(nn.LSTM(4, 5, bidirectional=True), .5, ['weight_hh_l0', 'weight_hh_l0_reverse']),
    gru=lambda: WeightDropout(nn.GRU(4, 5), .5),
    rnn=lambda: WeightDropout(nn.RNN(4, 5, nonlinearity='relu'), .5),
    linear=lambda: WeightDropout(nn.Linear(4, 5), .5, 'weight'),
    conv=lambda: WeightDropout(nn.Conv1d(6, 5, 2), .5, 'weight'))
each_wrapped = pytest.mark.parametrize('make', wrapped.values(), ids=wrapped.keys())


def run(module, x):
    out = module(x)
    return out[0] if isinstance(out, tuple) else out


@each_wrapped
def test_training_computes_with_the_dropped_weights(make):
    m,x = make(), torch.randn(3, 6, 4)
    seed_all(1); ours = run(m, x)
    seed_all(1)
    plain = deepcopy(m.module)
    for name in m.layer_names:  # set for good, in a copy
        with torch.no_grad(): getattr(plain, name).copy_(drop_weights(getattr(plain, name), .5))
    assert_close(ours, run(plain, x))
    ours.sum().backward()
    run(plain, x).sum().backward()
    for name, p in m.module.named_parameters():
        mask = 1 if name not in m.layer_names else 2 * (getattr(plain, name) != 0)
        assert_close(p.grad, getattr(plain, name).grad * mask)


@each_wrapped
def test_evaluation_computes_with_the_parameters(make):
    m,x = make().eval(), torch.randn(3, 6, 4)
    assert_close(run(m, x), run(m.module, x))


@each_wrapped
def test_parameters_stay_parameters_whatever_is_done(make):
    m,x = make(), torch.randn(3, 6, 4)
    names = [name for name, _ in m.named_parameters()]
    assert names == [f'module.{name}' for name, _ in m.module.named_parameters()] == list(m.state_dict())
    run(m.eval(), x)
    (run(m.train(), x) + run(m, x)).sum().backward()  # two forwards before one backward, after an evaluation
    before = deepcopy(m.state_dict())
    torch.optim.SGD(m.parameters(), lr=.1).step()
    assert [name for name, _ in m.named_parameters()] == names
    for name, p in m.named_parameters():
        assert isinstance(p, nn.Parameter) and p.is_leaf and p.grad is not None
        assert not torch.equal(p, before[name])


@each_wrapped
def test_a_used_module_can_be_copied_pickled_and_averaged(make):
    m,x = make(), torch.randn(3, 6, 4)
    run(m, x).sum().backward()
    for twin in (deepcopy(m), pickle.loads(pickle.dumps(m)), AveragedModel(m).module):
        assert_close(run(twin.eval(), x), run(m.module, x))
        run(twin.train(), x).sum().backward()
        for p, q in zip(m.parameters(), twin.parameters()): assert p is not q


def test_a_state_dict_goes_into_another_wrapper():
    m,other,x = wrapped['lstm'](), wrapped['lstm'](), torch.randn(3, 6, 4)
    run(m, x)
    other.load_state_dict(m.state_dict())
    assert_close(run(other.eval(), x), run(m.eval(), x))


def test_packed_sequences_and_states_pass_through():
    m = WeightDropout(nn.LSTM(4, 5, batch_first=True), .5)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 3, 4), [3, 2], batch_first=True)
    state = torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    out,_ = m(packed, state)
    assert out.data.shape == (5, 5)


def test_threads_do_not_see_each_others_weights():
    m,x = WeightDropout(nn.GRU(4, 64, batch_first=True), .5), torch.randn(2, 30, 4)
    expected = m.module(x)[0]
    with ThreadPoolExecutor(4) as pool:
        dropped = [pool.submit(lambda: m(x)[0]) for _ in range(40)]
        plain = [pool.submit(lambda: m.module(x)[0]) for _ in range(40)]
    for future in plain: assert_close(future.result(), expected)
    for future in dropped: assert not torch.equal(future.result(), expected)


def test_a_stand_in_leaves_the_original_alone():
    gru,x = nn.GRU(4, 5), torch.randn(2, 3, 4)
    before = gru(x)[0]
    twin = stand_in(gru, dict(weight_hh_l0=torch.zeros(15, 5)))
    assert not torch.equal(twin(x)[0], before)
    assert_close(gru(x)[0], before)
    assert gru._flat_weights[1] is gru.weight_hh_l0


def test_a_stand_in_never_moves_the_originals_weights(monkeypatch):
    m = WeightDropout(nn.GRU(4, 5), .5)
    def moved(self): raise AssertionError("the weights were flattened")
    monkeypatch.setattr(nn.GRU, 'flatten_parameters', moved)
    m(torch.randn(3, 2, 4))


def test_a_name_that_is_no_parameter_is_told_with_those_that_are():
    with pytest.raises(ValueError, match='no parameter weight_hh_l1: layer_names can be weight_ih_l0, weight_hh_l0'):
        WeightDropout(nn.LSTM(2, 3), .5, ['weight_hh_l0', 'weight_hh_l1'])


@pytest.mark.parametrize('p', [1., -.5, 2., float('nan')])
def test_no_mask_of_what_is_no_probability(p):
    with pytest.raises(ValueError, match='is no dropout probability'): drop_weights(torch.ones(3), p)
