"""Whisper's encoder for speech of any length, and its weights without the decoder's.

Shape letters: B batch, M mel bins, F mel frames, T encoder frames, D encoder width.
"""

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration_pinyin_llm import num_encoder_frames
from .projector_pinyin_llm import length_mask


IN_WHISPER = {r"^(?:model\.)?encoder\.": ""}  # the encoder's weights in a Whisper checkpoint of any class


class PinyinLlamaAudioTower(WhisperEncoder):
    """Whisper's encoder, same weights, for speech of any length up to 30 s in batches of mixed lengths.

    The stock encoder demands 30 s windows; short clips pay for the silence. Here a clip's frames never depend on its
    neighbours in the batch: what lies beyond its end is zeroed before each convolution and masked in attention.
    """

    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"proj_out\."]

    def forward(self, input_features: torch.Tensor, input_features_mask: torch.Tensor) -> torch.Tensor:
        """(B, M, F) log-mel and (B, F) mask -> (B, T, D).

        Raises:
            ValueError: More frames than Whisper has positions for (30 s).
        """
        frames = num_encoder_frames(input_features_mask.sum(-1))
        limit = self.embed_positions.num_embeddings
        if num_encoder_frames(input_features.shape[-1]) > limit:
            raise ValueError(
                f"Expected at most {2 * limit} mel frames ({limit / 50:.0f} s), found {input_features.shape[-1]}. "
                "Cut longer audio at its pauses: split_at_pauses of audio_pinyin_llm, as transcribe_clips of "
                "generation_pinyin_llm does."
            )
        mel_mask = input_features_mask[:, None].to(self.conv1.weight.dtype)
        hidden = nn.functional.gelu(self.conv1(input_features.to(self.conv1.weight.dtype) * mel_mask))
        hidden = nn.functional.gelu(self.conv2(hidden * mel_mask)).transpose(1, 2)  # B, M, F -> B, T, D
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        mask = create_bidirectional_mask(self.config, hidden, length_mask(frames, hidden.shape[1]).long())
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.layer_norm(hidden)

    @classmethod
    def from_whisper(cls, name: str, **kwargs) -> "PinyinLlamaAudioTower":
        """The encoder of a Whisper checkpoint; the decoder's weights stay unread.

        Args:
            name: Folder or Hub id.
            **kwargs: For `from_pretrained`: revision, dtype, ...

        Raises:
            ValueError: A checkpoint without such an encoder.
        """
        tower, info = cls.from_pretrained(name, key_mapping=IN_WHISPER, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:4])
            raise ValueError(
                f"{name} has no Whisper encoder of this shape: {missing} are missing. Name a Whisper checkpoint."
            )
        return tower


__all__ = ["PinyinLlamaAudioTower"]
