"""PinyinLLM: Mandarin speech recognition by a language model that was first taught pinyin."""

__all__ = ["PinyinLlamaConfig", "PinyinLlamaForASR", "PinyinLlamaProcessor"]  # noqa: F822


def __getattr__(name: str):
    """The classes come when they are first asked for, so that `pinyin-llm --help` need not wait for transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(_load_classes())
    return globals()[name]


def _load_classes() -> dict[str, type]:
    """The public classes by name; from here on transformers' Auto classes know them too."""
    from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor

    from .configuration_pinyin_llm import PinyinLlamaConfig
    from .modeling_pinyin_llm import PinyinLlamaForASR
    from .processing_pinyin_llm import PinyinLlamaProcessor

    AutoConfig.register("pinyin_llama", PinyinLlamaConfig, exist_ok=True)
    AutoProcessor.register(PinyinLlamaConfig, PinyinLlamaProcessor, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForSpeechSeq2Seq, AutoModelForMultimodalLM):
        auto_class.register(PinyinLlamaConfig, PinyinLlamaForASR, exist_ok=True)
    return {each.__name__: each for each in (PinyinLlamaConfig, PinyinLlamaForASR, PinyinLlamaProcessor)}
