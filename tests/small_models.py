"""Small models of the families that are read, as transformers saves them: drawn weights, a tokenizer of a few words."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
  "how do I merge two sorted files?", "heapq.merge Merge multiple sorted inputs into a single sorted output.",
  "os.wait Wait for completion of a child process, and return a tuple containing its pid and exit status.",
  "naïve Café", "str.casefold Return a casefolded copy of the string.", "wait for a child process", "the and of to in",
]
LAYERS, WIDTH, HEADS, POSITIONS = 2, 32, 4, 80
ANGLED = ["<s>", "<pad>", "</s>", "<unk>"]
T5S = ["<pad>", "</s>", "<unk>"]
# Embeddings; tokens are one more.
GEMMAS = 400


def _trained(model: Any, pre_tokenizer: Any, trainer: Any) -> dict[str, Any]:
  made = tokenizers.Tokenizer(model)
  made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizer
  made.train_from_iterator(TEXTS, trainer)
  return json.loads(made.to_str())["model"]


def _byte_pairs(name: str) -> Any:
  import transformers

  alphabet = pre_tokenizers.ByteLevel.alphabet()
  learnt = _trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainers.BpeTrainer(
    vocab_size=330, special_tokens=[*ANGLED, "<mask>"], initial_alphabet=alphabet, show_progress=False))
  return getattr(transformers, name)(vocab=learnt["vocab"], merges=[tuple(one) for one in learnt["merges"]])


def _unigrams(name: str, special: list[str], *more: str) -> Any:
  import transformers

  learnt = _trained(models.Unigram(), pre_tokenizers.Metaspace(), trainers.UnigramTrainer(
    vocab_size=120, special_tokens=special, unk_token=special[-1], show_progress=False))
  return getattr(transformers, name)(vocab=[*map(tuple, learnt["vocab"]), *((one, 0.0) for one in more)])


def _word_pieces(name: str, special: list[str]) -> Any:
  import transformers

  learnt = _trained(models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), trainers.WordPieceTrainer(
    vocab_size=150, special_tokens=special, show_progress=False))
  return getattr(transformers, name)(vocab=learnt["vocab"])


def _byte_pairs_of_tokenizer_json(special: list[str], single: str, pair: str, names: tuple[str, ...]) -> Any:
  """Without a class of their own, framed by what tokenizer.json says; names: of the special ones."""
  import transformers

  made = tokenizers.Tokenizer(models.BPE())
  made.normalizer, made.decoder = normalizers.NFC(), decoders.ByteLevel()
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.train_from_iterator(TEXTS, trainers.BpeTrainer(
    vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  made.post_processor = processors.TemplateProcessing(
    single=single, pair=pair, special_tokens=[(one, made.token_to_id(one)) for one in special])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **dict(zip(names, special, strict=True)))


def _framed_byte_pairs() -> Any:
  """As ModernBERT has them."""
  return _byte_pairs_of_tokenizer_json(BRACKETED, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:0 [SEP]:0", (
    "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"))


def _closed_byte_pairs() -> Any:
  """As Qwen3's embedding models have them."""
  return _byte_pairs_of_tokenizer_json(["<|endoftext|>", "<|im_end|>"], "$A <|endoftext|>",
                                       "$A <|endoftext|> $B:0 <|endoftext|>:0", ("pad_token", "eos_token"))


def _gemmas() -> Any:
  """Framed as EmbeddingGemma's; what it has no word of, it spells in bytes.  Its last token has no embedding."""
  import transformers

  special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
  learnt = _trained(models.BPE(byte_fallback=True), pre_tokenizers.Metaspace(), trainers.BpeTrainer(
    vocab_size=GEMMAS, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False))
  made = transformers.GemmaTokenizer(
    vocab=learnt["vocab"], merges=[tuple(one) for one in learnt["merges"]], add_bos_token=True, add_eos_token=True)
  made.add_tokens("<image_soft_token>", special_tokens=True)
  return made


BRACKETED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_BERT_SIZES = {
  "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 64,
  "max_position_embeddings": POSITIONS,
}  # fmt: skip
_DISTIL_SIZES = {
  "n_layers": LAYERS, "dim": WIDTH, "n_heads": HEADS, "hidden_dim": 64, "max_position_embeddings": POSITIONS}
# Every second layer sees 4 tokens to either side: texts are longer.
_MODERN_SIZES = _BERT_SIZES | {
  "num_hidden_layers": 3, "global_attn_every_n_layers": 2, "local_attention": 8, "classifier_pooling": "mean",
  "global_rope_theta": 500.0, "local_rope_theta": 20.0, "pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2,
  "sep_token_id": 3, "eos_token_id": 3,
}  # fmt: skip
# Heads wider than their share of the states; texts are longer than the farthest distance that has a bucket of its own.
_T5_SIZES = {
  "num_layers": LAYERS, "d_model": WIDTH, "num_heads": HEADS, "d_kv": 12, "d_ff": 64, "n_positions": POSITIONS,
  "relative_attention_num_buckets": 12, "relative_attention_max_distance": 16,
}  # fmt: skip
# Distances from 4 on share buckets: texts are longer.
_DEBERTA_SIZES = _BERT_SIZES | {
  "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
  "pos_att_type": "p2c|c2p", "max_relative_positions": -1, "position_biased_input": False, "legacy": False,
}  # fmt: skip
_LLAMA_SIZES = _BERT_SIZES | {"num_key_value_heads": 2, "rope_theta": 500.0, "pad_token_id": 0}
# Two layers of three see 4 tokens to either side: texts are longer.
_GEMMA_SIZES = _BERT_SIZES | {
  "vocab_size": GEMMAS, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 12, "query_pre_attn_scalar": 20,
  "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8,
  "use_bidirectional_attention": True, "rope_theta": 500.0, "rope_local_base_freq": 20.0,
}  # fmt: skip
_ELECTRA = _BERT_SIZES | {"embedding_size": 24}
_ROBERTA = _BERT_SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}


@dataclasses.dataclass(frozen=True)
class Small:
  """model_type and sizes of config.json, and a tokenizer of transformers' own class for it.

  pretrained: transformers' class for what the encoder learnt from.  encoder: the one of the encoder.
  """

  model_type: str
  sizes: dict[str, Any]
  tokenizer: Callable[[], Any]
  pretrained: str = "AutoModelForMaskedLM"
  encoder: str = "AutoModel"


SMALL = {
  "bert": Small("bert", _BERT_SIZES, lambda: _word_pieces("BertTokenizer", BRACKETED)),
  "bert with one type": Small(
    "bert", _BERT_SIZES | {"type_vocab_size": 1}, lambda: _word_pieces("BertTokenizer", BRACKETED)),
  "roberta": Small("roberta", _ROBERTA, lambda: _byte_pairs("RobertaTokenizer")),
  "xlm-roberta": Small("xlm-roberta", _ROBERTA, lambda: _unigrams("XLMRobertaTokenizer", ANGLED, "<mask>")),
  "camembert": Small(
    "camembert", _ROBERTA | {"type_vocab_size": 2}, lambda: _unigrams("CamembertTokenizer", ANGLED, "<mask>")),
  "distilbert": Small("distilbert", _DISTIL_SIZES, lambda: _word_pieces("DistilBertTokenizer", BRACKETED)),
  "mpnet": Small("mpnet", _BERT_SIZES, lambda: _word_pieces("MPNetTokenizer", [*ANGLED, "[UNK]", "<mask>"])),
  # Its discriminator, and its generator.
  "electra": Small("electra", _ELECTRA, lambda: _word_pieces("ElectraTokenizer", BRACKETED), "AutoModelForPreTraining"),
  "electra as wide as its embeddings": Small(
    "electra", _ELECTRA | {"embedding_size": WIDTH}, lambda: _word_pieces("ElectraTokenizer", BRACKETED)),
  "deberta-v2": Small("deberta-v2", _DEBERTA_SIZES, lambda: _unigrams(
    "DebertaV2Tokenizer", ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[MASK]")),
  "modernbert": Small("modernbert", _MODERN_SIZES, _framed_byte_pairs),
  "nomic_bert": Small("nomic_bert", _BERT_SIZES, lambda: _word_pieces("BertTokenizer", BRACKETED)),
  "gte": Small("gte", _BERT_SIZES, lambda: _unigrams("XLMRobertaTokenizer", ANGLED, "<mask>")),
  "gte without types": Small(
    "gte", _BERT_SIZES | {"type_vocab_size": 0}, lambda: _unigrams("XLMRobertaTokenizer", ANGLED, "<mask>")),
  "modernbert of the first token": Small(
    "modernbert", _MODERN_SIZES | {"classifier_pooling": "cls"}, _framed_byte_pairs),
  "eurobert": Small("eurobert", _LLAMA_SIZES, _framed_byte_pairs),
  # Its padding closes texts too.
  "qwen3": Small("qwen3", _LLAMA_SIZES | {"head_dim": 12, "pad_token_id": None}, _closed_byte_pairs,
                 "AutoModelForCausalLM"),
  "gemma3_text": Small("gemma3_text", _GEMMA_SIZES, _gemmas, "AutoModelForCausalLM"),
  # With its decoder, and the encoder by itself.
  "t5": Small("t5", _T5_SIZES, lambda: _unigrams("T5Tokenizer", T5S), "AutoModelForSeq2SeqLM", "T5EncoderModel"),
  "t5 of gated layers": Small(
    "t5", _T5_SIZES | {"feed_forward_proj": "gated-gelu"}, lambda: _unigrams("T5Tokenizer", T5S),
    "AutoModelForTextEncoding", "T5EncoderModel"),
}


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
  """As it is pretrained: with the head that it was for, and the encoder's tensors under the family's prefix."""
  import torch
  import transformers

  small, tokenizer = SMALL[name], SMALL[name].tokenizer()
  cfg = transformers.AutoConfig.for_model(small.model_type, **{"vocab_size": len(tokenizer)} | small.sizes)
  with torch.random.fork_rng():
    torch.manual_seed(0)
    model = getattr(transformers, small.pretrained).from_config(cfg)
    with torch.no_grad():
      for parameter in model.parameters():
        # Biases, norms and the row of padding too: what starts at zero would be missed by nobody.
        parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder
