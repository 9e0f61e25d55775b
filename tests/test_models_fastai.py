"Models with fastai 2.8.12's weights say what fastai's say. The fixture is made by `fixtures/make_fastai_models.py`."
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from awdtext.models.awd_lstm import awd_lstm_clas_config, awd_lstm_lm_config
from awdtext.models.classifier import get_text_classifier, masked_concat_pool
from awdtext.models.language_model import get_language_model

SIZES = dict(emb_sz=4, n_hid=6, n_layers=3)


@pytest.fixture(scope='module')
def recorded(): return torch.load(Path(__file__).parent/'fixtures/fastai_models.pt', weights_only=True)


def load(encoder, weights, prefix):
    "Copy fastai's encoder, whose names start with `prefix`, into ours."
    ours = {'embedding.emb.weight': weights[f'{prefix}encoder.weight']}
    for i in range(len(encoder.rnns)):
        rnn = f'{prefix}rnns.{i}.'
        ours[f'rnns.{i}.weight_hh_l0'] = weights[f'{rnn}weight_hh_l0_raw']
        for name in ('weight_ih_l0', 'bias_ih_l0', 'bias_hh_l0'):
            ours[f'rnns.{i}.{name}'] = weights[f'{rnn}module.{name}']
    encoder.load_state_dict(ours)


def test_language_model_over_two_windows(recorded):
    fastais = recorded['language_model']
    lm,state = get_language_model(20, SIZES).eval(), None
    load(lm.encoder, fastais['weights'], '0.')
    with torch.no_grad(): lm.decoder.bias.copy_(fastais['weights']['1.decoder.bias'])
    for ids, logits in zip(fastais['ids'], fastais['logits']):
        out = lm(ids, state)
        assert_close(lm.logits(out.dropped), logits)
        state = out.state


def test_classifier(recorded):
    fastais = recorded['classifier']
    clas = get_text_classifier(20, 3, SIZES, seq_len=3, max_len=6).eval()
    load(clas.encoder, fastais['weights'], '0.module.')
    clas.head.load_state_dict({name[2:]: w for name, w in fastais['weights'].items() if name.startswith('1.layers.')})
    assert_close(clas(fastais['ids'], fastais['lengths']).logits, fastais['logits'])


def test_pooling(recorded):
    fastais = recorded['pooling']
    assert_close(masked_concat_pool(fastais['out'], ~fastais['mask']), fastais['pooled'])


def test_configurations(recorded):
    assert recorded['configs'] == dict(lm=awd_lstm_lm_config, clas=awd_lstm_clas_config)
