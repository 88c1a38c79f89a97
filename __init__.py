"""PinyinLLM: Mandarin speech recognition with a language model that learns pinyin first."""

__all__ = ["PinyinLlamaConfig", "PinyinLlamaForASR", "PinyinLlamaProcessor", "correct"]  # noqa: F822


def __getattr__(name: str):
    """Load the public names when they are first used, so that `pinyin-llm --help` need not wait for transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(_load_and_register())
    return globals()[name]


def _load_and_register() -> dict[str, object]:
    """The public names; transformers' Auto classes know the classes from then on."""
    from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor

    from .configuration_pinyin_llm import PinyinLlamaConfig
    from .correction.corrector import correct
    from .modeling_pinyin_llm import PinyinLlamaForASR
    from .processing_pinyin_llm import PinyinLlamaProcessor

    AutoConfig.register("pinyin_llama", PinyinLlamaConfig, exist_ok=True)
    AutoProcessor.register(PinyinLlamaConfig, PinyinLlamaProcessor, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForSpeechSeq2Seq, AutoModelForMultimodalLM):
        auto_class.register(PinyinLlamaConfig, PinyinLlamaForASR, exist_ok=True)
    public = (PinyinLlamaConfig, PinyinLlamaForASR, PinyinLlamaProcessor, correct)
    return {each.__name__: each for each in public}
