"""Every number of a PinyinLLM model that must survive a reload."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .tokenization_pinyin_llm import PinyinError, check_units


PROJECTOR_TYPES = ("pooling", "pinyin_bridge")
RECOGNIZERS = ("bridge", "whisper")
POOLINGS = ("mean", "max", "attention", "stack", "conv")
RELEASE = 1
# Without these a file would be completed by the paper's sizes, 7 billion parameters.
REQUIRED = ("audio_config", "text_config", "audio_token_id", "pinyin_token_id", "projector_type", "projector_stride")
AUDIO_SIZES = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
REQUIRED_OF_PARTS = {
    "audio_config": ("model_type", *AUDIO_SIZES),
    "text_config": ("model_type", "hidden_size", "vocab_size"),
}
NOT_OF_A_FILE = re.compile("unexpected keyword argument|allocate memory|out of memory|CUDA")
LONGEST_REASON = 300  # characters of another library's message
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def num_encoder_frames(num_mel_frames):
    """Mel frames (100 per second) -> Whisper encoder frames (50 per second); integers or integer tensors."""
    return (num_mel_frames + 1) // 2


def num_audio_slots(num_mel_frames, stride: int):
    """Mel frames -> slots of the speech in the prompt. The one formula that processing and modeling share."""
    return (num_encoder_frames(num_mel_frames) + stride - 1) // stride


@contextmanager
def naming_faults(source: str) -> Iterator[None]:
    """Whatever a damaged file makes another library raise, down to a bare Exception, becomes one ValueError.

    Errors of the caller, of the machine or of the code pass: wrong arguments, a device that is not there, full memory.

    Args:
        source: The file or folder that is being read, for the message; errors that name it already stay as they are.
    """
    try:
        yield
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:
        if NOT_OF_A_FILE.search(str(error)) or (isinstance(error, ValueError) and source in str(error)):
            raise
        reason = " ".join(str(error).split())[:LONGEST_REASON]  # transformers may list all types that it knows
        if isinstance(error, ValueError) and not isinstance(error, UnicodeDecodeError | JSONDecodeError):
            kind = PinyinError if isinstance(error, PinyinError) else ValueError
            raise kind(f"{source}: {reason}") from error  # it says what to do
        kind = type(error).__name__
        raise ValueError(f"{source}: {kind}: {reason.removesuffix('.')}. Restore this file or folder.") from error


def _missing_keys(values: dict) -> list[str]:
    """Keys that a config.json must have and `values` have not, those of a part as "text_config.hidden_size"."""
    missing = [key for key in REQUIRED if values.get(key) is None]
    for part, keys in REQUIRED_OF_PARTS.items():
        found = values.get(part)
        if isinstance(found, dict):
            kind = found.get("model_type")
            names = CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
            missing += [f"{part}.{key}" for key in keys if found.get(names.get(key, key), found.get(key)) is None]
    return missing


def _read_values(config_class, name, arguments: dict) -> dict:
    """The content of a config.json."""
    try:
        values = config_class.get_config_dict(name, **arguments)[0]
    except (AttributeError, TypeError):  # transformers expects an object
        values = None
    if values == {}:
        raise OSError(f"{name}: expected a model folder with config.json, found none in it.")
    if not isinstance(values, dict):
        raise ValueError(f"{name}, config.json: expected a JSON object, found something else.")
    return values


@strict
class PinyinLlamaConfig(PreTrainedConfig):
    """Configuration of [`PinyinLlamaForASR`]. The defaults describe the paper's size: Whisper-large-v3 + LLaMA2-7b.

    Args:
        audio_config: WhisperConfig of the audio tower; only the encoder's values are used.
        text_config: Config of the language model: any AutoModelForCausalLM.
        audio_token_id: Placeholder of projected speech, after the tokens of the LLM's tokenizer; never generated.
        pinyin_token_id: Placeholder of a pinyin embedding.
        pinyin_vocab_size: Rows of the pinyin table.
        pinyin_units: The syllables of the rows, separated by spaces; the bridge builds its logits from their initials,
            finals and tones.
        projector_type: "pooling" (the paper's: pool, then linear) or "pinyin_bridge" (ours: CTC to pinyin vectors).
        projector_stride: Encoder frames (20 ms) per slot; for the bridge this limits the slots that speech can fill.
        projector_pooling: How a window becomes one vector: "mean", "max", "attention", "stack" or "conv".
        bridge_hidden_size: Width of the bridge's CTC head.
        bridge_num_layers: Its transformer layers.
        bridge_num_attention_heads: Its attention heads.
        bridge_dropout: Its dropout in training.
        ctc_loss_weight: Weight of the bridge's CTC loss, added to the language model's loss.
        recognizers: What `transcribe` listens with by default: ["bridge"], or ["bridge", "whisper"] for both combined.
            `None` means the projector alone.
        decoder_config: WhisperConfig values of Whisper's own decoder, if the model has it (decoder_pinyin_llm.py).
        decoder_tokens: The tokens of its rows, separated by spaces: bytes in hexadecimal, or names of control tokens.
        delta: For a folder with only the trained weights: {"audio_tower": base, "language_model": base, "adapters":
            their number}, where a base is {"name", "revision"} (delta_pinyin_llm.py).
        release: Version of this file's format; a newer one than the code knows is refused.
    """

    model_type = "pinyin_llama"
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="whisper",
            init_kwargs={
                "num_mel_bins": 128,
                "d_model": 1280,
                "encoder_layers": 32,
                "encoder_attention_heads": 20,
                "encoder_ffn_dim": 5120,
            },
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_token_id: int = 32000
    pinyin_token_id: int = 32001
    pinyin_vocab_size: int = 1417
    pinyin_units: str | None = None
    projector_type: str = "pooling"
    projector_stride: int = 5
    projector_pooling: str = "mean"
    bridge_hidden_size: int = 384
    bridge_num_layers: int = 2
    bridge_num_attention_heads: int = 6
    bridge_dropout: float = 0.1
    ctc_loss_weight: float = 1.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    recognizers: list[str] | None = None
    decoder_config: dict | None = None
    decoder_tokens: str | None = None
    delta: dict | None = None
    release: int = RELEASE

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int):
        self.text_config.vocab_size = value

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers, but the configuration of another model is refused by name, and nothing is filled in.

        Raises:
            OSError: No such folder or Hub id, or no config.json in it.
            ValueError: A checkpoint of another kind, a required key that is missing, or a value that cannot be.
        """
        name = pretrained_model_name_or_path
        if not Path(name).exists() and not HUB_ID.fullmatch(str(name)):
            raise OSError(f"{name}: expected the folder of a PinyinLLM model or a Hub id, found no such folder.")
        values = _read_values(cls, name, kwargs)
        if (found := values.get("model_type")) != cls.model_type:
            raise ValueError(f"{name} is a {found} checkpoint; expected {cls.model_type}. Name a PinyinLLM model.")
        with naming_faults(f"{name}, config.json"):
            return super().from_pretrained(name, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, which calls this for every config.json, but all required keys must be there.

        Raises:
            ValueError: Names the keys that are missing.
        """
        if missing := [key for key in _missing_keys(config_dict) if key not in kwargs]:
            raise ValueError(
                f"expected {', '.join(missing)} in the configuration of a model, found none. Restore them."
            )
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict:
        """As in transformers, without the paths that the parts were loaded from, which are often somebody's folders."""
        values = super().to_dict()
        for part in ("audio_config", "text_config"):
            values[part].pop("_name_or_path", None)
        return values

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.validate_architecture()  # called here it raises ValueError, not an error of huggingface_hub

    def validate_architecture(self):
        """Refuse values that contradict each other, before any weight is read.

        Raises:
            ValueError: What was expected and what was found.
        """
        if self.release > RELEASE:
            raise ValueError(f"This checkpoint has format {self.release}, the code knows {RELEASE}. Update pinyin-llm.")
        if self.projector_type not in PROJECTOR_TYPES:
            raise ValueError(f"projector_type must be one of {PROJECTOR_TYPES}, found {self.projector_type!r}.")
        if self.projector_pooling not in POOLINGS:
            raise ValueError(f"projector_pooling must be one of {POOLINGS}, found {self.projector_pooling!r}.")
        if self.audio_token_id == self.pinyin_token_id or min(self.audio_token_id, self.pinyin_token_id) < 0:
            found = f"{self.audio_token_id} and {self.pinyin_token_id}"
            raise ValueError(f"audio_token_id and pinyin_token_id must be two different tokens, found {found}.")
        if wrong := [f"{name} {size}" for name in AUDIO_SIZES if (size := getattr(self.audio_config, name)) < 1]:
            raise ValueError(f"The sizes of audio_config must be at least 1, found {', '.join(wrong)}.")
        if self.projector_stride < 1:
            raise ValueError(f"projector_stride must be at least 1 encoder frame, found {self.projector_stride}.")
        num_units = self.pinyin_vocab_size if self.pinyin_units is None else len(self.pinyin_units.split())
        if num_units != self.pinyin_vocab_size:
            raise ValueError(f"pinyin_vocab_size is {self.pinyin_vocab_size}, but pinyin_units has {num_units} units.")
        if self.pinyin_units is not None:
            check_units(self.pinyin_units.split())
        if self.recognizers is not None:
            self.check_recognizers(self.recognizers)
        if self.projector_type == "pinyin_bridge" and self.pinyin_units is None:
            raise ValueError("projector_type='pinyin_bridge' needs pinyin_units; pass ' '.join(PinyinTokenizer.units).")

    def check_recognizers(self, names: list[str]) -> None:
        """Refuse recognisers that this model does not have.

        Raises:
            ValueError: What was expected and what was found.
        """
        if list(names) not in (["bridge"], list(RECOGNIZERS)):
            raise ValueError(f"recognizers must be bridge, or bridge and whisper; found {', '.join(names) or 'none'}.")
        if self.projector_type != "pinyin_bridge":
            raise ValueError(f"recognizers need a pinyin_bridge, but projector_type is {self.projector_type!r}.")
        if "whisper" in names and not (self.decoder_config and self.decoder_tokens):
            raise ValueError(
                "This model has no Whisper decoder. Use recognizers bridge, or add one: pinyin-llm base text_decoder."
            )


__all__ = ["PinyinLlamaConfig", "num_audio_slots", "num_encoder_frames"]
