"""PinyinLLM: Mandarin speech recognition by a language model that was first taught pinyin."""

from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor

from .configuration_pinyin_llm import PinyinLlamaConfig
from .modeling_pinyin_llm import PinyinLlamaForASR
from .processing_pinyin_llm import PinyinLlamaProcessor


__all__ = ["PinyinLlamaConfig", "PinyinLlamaForASR", "PinyinLlamaProcessor"]
