"""PinyinLLM: Whisper encoder -> projector -> causal LM, with a pinyin table that feeds the same slot as speech.

After "Bridging Speech and Text: Enhancing ASR with Pinyin-to-Character Pre-training in LLMs" (arXiv 2409.16005).
Shape letters: B batch, M mel bins, F mel frames, T encoder frames, D encoder width, N slots, H width of the language
model, L text length, U pinyin units.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, WhisperConfig
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from .configuration_pinyin_llm import PinyinLlamaConfig, naming_faults, num_audio_slots, num_encoder_frames
from .decoder_pinyin_llm import PinyinLlamaTextDecoder
from .delta_pinyin_llm import load_delta, name_base, read_delta_config
from .encoder_pinyin_llm import PinyinBridge, PinyinLlamaAudioTower, PoolingProjector, Slots, length_mask
from .generation_pinyin_llm import PinyinLlamaGenerationMixin


PROJECTORS = {"pooling": PoolingProjector, "pinyin_bridge": PinyinBridge}
AUTO_MAP = {
    "AutoConfig": "configuration_pinyin_llm.PinyinLlamaConfig",
    "AutoModel": "modeling_pinyin_llm.PinyinLlamaForASR",
    "AutoModelForSpeechSeq2Seq": "modeling_pinyin_llm.PinyinLlamaForASR",
    "AutoModelForMultimodalLM": "modeling_pinyin_llm.PinyinLlamaForASR",
    # Not a decision model: the one class by which `transformers serve` (5.24) loads a model that is not its own.
    "AutoModelForDecision": "modeling_pinyin_llm.PinyinLlamaForASR",
    "AutoProcessor": "processing_pinyin_llm.PinyinLlamaProcessor",
}


@dataclass
class PinyinLlamaOutput(ModelOutput):
    """Output of `forward`.

    Args:
        loss: Mean cross-entropy of the labels, plus the weighted CTC loss where pinyin labels were given.
        logits: (B, L, vocabulary), the last `logits_to_keep` positions.
        ctc_loss: The bridge's CTC loss alone.
        cache: Cache of the language model.
        hidden_states: Of the language model, on request.
        attentions: Of the language model, on request.
        pinyin: (B, N) unit ids that the bridge recognised, -1 where a slot is empty.
        pinyin_times: (B, N, 2) start and end of each in seconds: from its CTC spike to the next one, or to the end.
        pinyin_confidence: (B, N) probability of the unit recognised.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    ctc_loss: torch.Tensor | None = None
    cache: object | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    pinyin: torch.Tensor | None = None
    pinyin_times: torch.Tensor | None = None
    pinyin_confidence: torch.Tensor | None = None


class PinyinLlamaPreTrainedModel(PreTrainedModel):
    config_class = PinyinLlamaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _auto_class = "AutoModel"  # save_pretrained copies the code beside the weights
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["cache"]
    _no_split_modules = ["WhisperEncoderLayer", "LlamaDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PinyinBridge):
            init.copy_(module.composition, module.compose_units(self.config.pinyin_units))
            init.zeros_(module.unit_bias)
            # A slot starts as pure pinyin, which the language model has learned to read in stage 1.
            init.zeros_(module.residual.weight)
            init.zeros_(module.residual.bias)


class PinyinLlamaForASR(PinyinLlamaPreTrainedModel, PinyinLlamaGenerationMixin):
    """Speech or pinyin in, characters out.

    The prompt holds placeholders (`config.audio_token_id`, `config.pinyin_token_id`); speech projected by
    `multi_modal_projector` or rows of `pinyin_embeddings` replace them.
    """

    def __init__(self, config: PinyinLlamaConfig):
        super().__init__(config)
        self.audio_tower = PinyinLlamaAudioTower._from_config(config.audio_config)
        self.multi_modal_projector = PROJECTORS[config.projector_type](config)
        self.pinyin_embeddings = nn.Embedding(config.pinyin_vocab_size, config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.text_decoder = None  # Whisper's own decoder, where the model has it
        if config.decoder_config:
            self.text_decoder = PinyinLlamaTextDecoder(WhisperConfig(**config.decoder_config))
        self.delta: dict | None = None  # names of the two base models, where they are known
        self.adapters: list[tuple] = []  # LoRA that is merged into them already, for the next delta
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings):
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self):
        return self.language_model.get_decoder()

    def save_pretrained(self, *args, **kwargs):
        """As in transformers; the folder loads with trust_remote_code=True where this package is not installed."""
        # transformers copies this file and those it imports: the pipeline belongs to them (lazy, for it imports numpy)
        from .pipeline_pinyin_llm import CUSTOM_PIPELINES

        self.config.auto_map, self.config.custom_pipelines = dict(AUTO_MAP), CUSTOM_PIPELINES
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """As in transformers, but a checkpoint with missing or NaN weights is refused, never completed at random.

        Raises:
            ValueError: A file cannot be read; or names the keys that are missing, unexpected, of another shape, or not
                finite.
        """
        source = pretrained_model_name_or_path
        # Mismatched sizes are let through here, to be refused below with all other problems.
        kwargs = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with naming_faults(str(source)):
            if config := read_delta_config(source, kwargs):
                model, info = load_delta(cls, source, config, kwargs)
            else:
                model, info = super().from_pretrained(source, *args, **kwargs)
        problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        # Quantized tensors are classes of their own, without isfinite.
        plain = [(name, t) for name, t in tensors if t.device.type != "meta" and type(t.data) is torch.Tensor]
        broken = [name for name, t in plain if not t.isfinite().all()]
        if broken:
            problems["not finite"] = broken
        if problems:
            report = "; ".join(f"{kind}: {', '.join(keys[:8])} ({len(keys)})" for kind, keys in problems.items())
            raise ValueError(f"{source} is not a complete PinyinLLM checkpoint. {report}. Download it again.")
        return (model, info) if output_loading_info else model

    @classmethod
    def from_base_models(cls, config: PinyinLlamaConfig, audio_tower: str, language_model: str, dtype=torch.float32):
        """A new model on pretrained parts: the encoder of a Whisper checkpoint and a causal LM, both in `dtype`."""
        bases = {"audio_tower": name_base(audio_tower), "language_model": name_base(language_model)}
        tower = PinyinLlamaAudioTower.from_whisper(audio_tower, dtype=dtype)
        model = cls.from_parts(config, tower, AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype))
        model.delta = bases
        return model

    @classmethod
    def from_parts(cls, config: PinyinLlamaConfig, audio_tower, language_model, text_decoder=None):
        """The model around parts that are in memory, without copying them; all else is untrained, in float32."""
        config = copy.deepcopy(config)
        config.delta = None  # a delta describes a folder; the model in memory is whole
        if text_decoder is None:
            config.recognizers = config.decoder_config = config.decoder_tokens = None
        with torch.device("meta"):
            model = cls(config)
        model.audio_tower, model.language_model = audio_tower, language_model
        model.text_decoder = text_decoder
        model.multi_modal_projector = PROJECTORS[config.projector_type](config)
        model.pinyin_embeddings = nn.Embedding(config.pinyin_vocab_size, config.hidden_size)
        for part in (model.multi_modal_projector, model.pinyin_embeddings):
            part.apply(model._init_weights)
        return model

    def get_pinyin_features(self, pinyin_ids: torch.Tensor) -> Slots:
        """(B, N) or (B, N, K) unit ids, -1 for none -> slots with the mean of the table rows named.

        K ids in a slot stand for a syllable without its tone, or for one recognised as something between units.
        """
        ids = pinyin_ids.reshape(*pinyin_ids.shape[:2], -1)
        named = (ids >= 0).unsqueeze(-1)
        rows = self.pinyin_embeddings(ids.clamp(min=0)) * named  # B, N, K, H
        vectors = rows.sum(2) / named.sum(2).clamp(min=1)
        filled = named.any(2).squeeze(-1)
        return Slots(vectors=vectors, filled=filled, counts=filled.sum(-1))

    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
    ) -> Slots:
        """(B, M, F) log-mel (or its cached encoder output, (B, T, D)) and (B, F) mask -> slots (B, N, H)."""
        if audio_hidden_states is None:
            audio_hidden_states = self.audio_tower(input_features, input_features_mask)
        mel_frames = input_features_mask.sum(-1)
        frames = num_encoder_frames(mel_frames)
        audio_hidden_states = audio_hidden_states.to(self.pinyin_embeddings.weight.dtype)
        slots = self.multi_modal_projector(audio_hidden_states, frames, self.pinyin_embeddings.weight)
        slots.counts = num_audio_slots(mel_frames, self.config.projector_stride)
        return slots

    def _fill_placeholders(self, token_id, slots, input_ids, inputs_embeds, attention_mask):
        """Put `slots` where `input_ids` has `token_id`; empty slots are masked out of attention."""
        is_placeholder = input_ids == token_id
        counts = is_placeholder.sum(-1)
        if not torch.equal(counts, slots.counts):
            raise ValueError(
                f"Expected {slots.counts.tolist()} placeholders (id {token_id}) in the rows of input_ids, found "
                f"{counts.tolist()}. Let PinyinLlamaProcessor make input_ids and features together."
            )
        offered = length_mask(slots.counts, slots.vectors.shape[1])
        vectors = slots.vectors[offered].to(inputs_embeds.dtype)
        inputs_embeds = inputs_embeds.masked_scatter(is_placeholder.unsqueeze(-1), vectors)
        filled = slots.filled[offered].to(attention_mask.dtype)
        return inputs_embeds, attention_mask.masked_scatter(is_placeholder, filled)

    def merge_inputs(self, input_ids, attention_mask, slots_by_token):
        """Token ids with placeholders -> (inputs_embeds (B, L, H), attention_mask (B, L), or `None` without slots)."""
        placeholders = (input_ids == self.config.audio_token_id) | (input_ids == self.config.pinyin_token_id)
        inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(placeholders, 0))
        if (
            attention_mask is None and slots_by_token
        ):  # in a cached step a mask of the new token alone would hide the cache
            attention_mask = torch.ones_like(input_ids)
        for token_id, slots in slots_by_token.items():
            inputs_embeds, attention_mask = self._fill_placeholders(
                token_id, slots, input_ids, inputs_embeds, attention_mask
            )
        return inputs_embeds, attention_mask

    def collect_slots(self, pinyin_ids, input_features, input_features_mask, audio_hidden_states) -> dict[int, Slots]:
        """The slots of whatever is given, by the placeholder that they fill."""
        slots = {}
        if input_features is not None or audio_hidden_states is not None:
            slots[self.config.audio_token_id] = self.get_audio_features(
                input_features, input_features_mask, audio_hidden_states
            )
        if pinyin_ids is not None:
            slots[self.config.pinyin_token_id] = self.get_pinyin_features(pinyin_ids)
        return slots

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # as every model of transformers 5.24 does
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        pinyin_ids: torch.LongTensor | None = None,
        pinyin_labels: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache=None,
        inputs_embeds: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> PinyinLlamaOutput:
        """One pass over prompts and answers.

        Args:
            input_ids: (B, L) with placeholders; without any, only the CTC loss is computed.
            attention_mask: (B, L).
            input_features: (B, M, F) log-mel of speech, or
            audio_hidden_states: (B, T, D) the encoder's output for it, computed before.
            input_features_mask: (B, F), 1 on the clip's own mel frames.
            pinyin_ids: (B, N) or (B, N, K) unit ids for the pinyin placeholders, -1 for none.
            pinyin_labels: (B, N) unit ids spoken, -100 for none: adds the bridge's CTC loss.
            labels: (B, L), -100 on what is not to be learned.
            logits_to_keep: Logits (and loss) of the last positions only; 0 keeps all.
        """
        slots = self.collect_slots(pinyin_ids, input_features, input_features_mask, audio_hidden_states)
        speech = slots.get(self.config.audio_token_id)
        values = dict(speech.recognized) if speech is not None else {}
        if pinyin_labels is not None:
            values["ctc_loss"] = self._ctc_loss(speech, pinyin_labels, kwargs.get("num_items_in_batch"))
        if input_ids is not None or inputs_embeds is not None:
            if inputs_embeds is None:
                inputs_embeds, attention_mask = self.merge_inputs(input_ids, attention_mask, slots)
            values |= self._language_model_pass(
                inputs_embeds,
                attention_mask,
                labels,
                position_ids,
                cache=cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        if pinyin_labels is not None:
            weighted = self.config.ctc_loss_weight * values["ctc_loss"]
            values["loss"] = weighted if values.get("loss") is None else values["loss"] + weighted
        return PinyinLlamaOutput(**values)

    def _language_model_pass(
        self, inputs_embeds, attention_mask, labels, position_ids, cache, logits_to_keep, **kwargs
    ) -> dict:
        """The language model's part of `forward`, as fields of its output."""
        if self.training and attention_mask is not None and labels is not None:
            inputs_embeds, attention_mask, labels = drop_masked(attention_mask, inputs_embeds, labels)
        if position_ids is None and attention_mask is not None and cache is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if labels is not None and isinstance(logits_to_keep, int) and logits_to_keep:
            labels = labels[:, -logits_to_keep:]
        if self.training and attention_mask is not None and attention_mask.all():
            attention_mask = None  # equal lengths: attention without a mask is faster
        text = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            labels=labels,
            logits_to_keep=logits_to_keep,
            return_dict=True,
            **kwargs,
        )
        values = {name: text.get(name) for name in ("loss", "logits", "cache", "hidden_states", "attentions")}
        if self.training and labels is not None:
            del values["logits"]  # the largest tensor of the step, and mixed precision would copy it to float32
        return values

    def _ctc_loss(self, speech: Slots | None, pinyin_labels: torch.Tensor, num_items_in_batch) -> torch.Tensor:
        """The bridge's loss on the units spoken, (B, N) with -100 for none."""
        if speech is None or speech.log_probs is None:
            raise ValueError(
                "pinyin_labels train the bridge: expected input_features and projector_type='pinyin_bridge', found "
                f"{'no speech' if speech is None else 'a pooling projector'}."
            )
        return self.multi_modal_projector.ctc_loss(speech.log_probs, speech.frames, pinyin_labels, num_items_in_batch)


def drop_masked(attention_mask: torch.Tensor, inputs_embeds: torch.Tensor, labels: torch.Tensor):
    """Embeddings (B, L, H), mask and labels (B, L) without the masked positions, padded on the left.

    A bridge fills a third of its slots; the others need not go through the language model.
    """
    longest = int(attention_mask.sum(-1).max())
    kept = attention_mask.argsort(dim=-1, stable=True)[:, -longest:]  # B, L -> B, K: masked positions sort first
    embeds = inputs_embeds.take_along_dim(kept.unsqueeze(-1), 1)
    return embeds, attention_mask.gather(1, kept), labels.gather(1, kept)


__all__ = ["PinyinLlamaForASR", "PinyinLlamaPreTrainedModel"]
