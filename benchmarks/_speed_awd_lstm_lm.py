"""The training step of salesforce/awd-lstm-lm, for `speed.py`: `_speed_awd_lstm_lm.py DIR`, DIR being a checkout.

Its modules do the work; what its main.py does around them is written anew here.
"""
import sys

import torch
from _serve import serve


def train(settings):
    "Steps of a language model."
    from model import RNNModel
    from splitcross import SplitCrossEntropyLoss
    from utils import repackage_hidden
    s = {**settings, **torch.load(settings['file'], weights_only=True)}
    torch.set_num_threads(s['threads'])
    torch.manual_seed(0)
    (emb_sz, n_hid, n_layers),p = s['sizes'], s['dropouts']
    model = RNNModel('LSTM', len(s['words']), emb_sz, n_hid, n_layers, dropout=p['output_p'], dropouth=p['hidden_p'],
                     dropouti=p['input_p'], dropoute=p['embed_p'], wdrop=p['weight_p'], tie_weights=True)
    loss_func = SplitCrossEntropyLoss(emb_sz, splits=[], verbose=False)
    params = list(model.parameters())
    opt = torch.optim.SGD(params, lr=s['lr'], weight_decay=1.2e-6)
    n_steps = (len(s['ids']) - 1) // s['bs']
    x,y = (s['ids'].long()[i:i + n_steps * s['bs']].view(s['bs'], n_steps).t().contiguous() for i in (0, 1))

    def step(xb, yb, hidden):
        opt.zero_grad()
        out,hidden,raw,dropped = model(xb, hidden, return_h=True)
        loss = loss_func(model.decoder.weight, model.decoder.bias, out, yb.reshape(-1))
        loss = loss + 2 * dropped[-1].pow(2).mean() + (raw[-1][1:] - raw[-1][:-1]).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, .25)
        opt.step()
        return hidden

    def sample(i):
        model.train()
        hidden = model.init_hidden(s['bs'])
        for xb, yb in zip(x.split(s['bptt']), y.split(s['bptt'])): hidden = step(xb, yb, repackage_hidden(hidden))
        return x.numel()
    first = x[:s['bptt']].t()
    return sample, {'parameters': sum(o.numel() for o in {*params}),
                    'batch': int((first * torch.arange(1, first.numel() + 1).view(first.shape)).sum())}


if __name__ == '__main__':
    sys.path.insert(0, sys.argv[1])
    serve({'train': train})
