"""Pretraining on plain text: a small decoder or encoder from nothing, its tokenizer included, or a decoder that goes on from where it is.

seodang pretrain --data texts/ --eval_fraction 0.05 --architecture llama --hidden_size 256 --layers 6 --heads 4
accelerate launch recipes/pretrain.py --config recipes/pretrain.yaml --data texts/
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from seodang.data.errors import UserError
from seodang.data.text.rows import CausalRows
from seodang.data.text.texts import DocumentTexts
from seodang.data.text.tokenizer_training import train_tokenizer
from seodang.infer import SamplingParams
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.infer.kernels.device import choose_dtype
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.text import TrainingTextOptions
from seodang.recipes.options.tokenizing import TokenizerOptions
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions
from seodang.recipes.run.before_after import picture_line, print_once
from seodang.recipes.run.identity import origin_of
from seodang.recipes.run.training import checkpoint_to_resume, complete_arguments, early_stopping, held_out_line, plan_lines, train_and_save
from seodang.recipes.tokenizer import lines as tokenizer_lines
from seodang.train.pretraining.architecture import SUGGESTED, Sizes, config_of_file, is_encoder, small_config, untrained
from seodang.train.pretraining.causal import pretrain_trainer
from seodang.train.pretraining.samples import TextSampler
from seodang.train.run.callbacks import CURVE, terminal_curve
from seodang.train.stages.plan import plan

NEW = "new"
BEGINNING = 8  # tokens of a held-out document that a sample goes on from
SAMPLES = 3
