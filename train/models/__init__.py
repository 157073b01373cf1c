"""The models, one file each: NAME.py with the network, from features to logits, and `SPEC` (train/registry.py).

Calling a network with one (B, F) tensor per input of `config.inputs`, in that order, gives the logits (B, L).

The source of LSTM, BiLSTM and DMRNet, "the report" throughout: Kar Chun Teong, Takehiro Matsunaga, Eduardo Wang Zheng,
"AI Project 2: Multi-label Classification on YouTube-8M", course report, Shanghai Jiao Tong University, 2020.
"""
