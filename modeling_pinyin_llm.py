"""PinyinLLM: Whisper encoder -> projector -> causal LM, with a pinyin table that feeds the same slot as speech.

After "Bridging Speech and Text: Enhancing ASR with Pinyin-to-Character Pre-training in LLMs" (arXiv 2409.16005).
Shape letters: B batch, M mel bins, F mel frames, T encoder frames, D encoder width, N slots, H width of the language
model, L text length, U pinyin units.
"""

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from .audio_tower_pinyin_llm import PinyinLlamaAudioTower
from .configuration_pinyin_llm import PinyinLlamaConfig, num_audio_slots, num_encoder_frames
from .delta_pinyin_llm import load_delta, name_base, read_delta_config
from .drafting_pinyin_llm import is_plain_greedy, write_in_passes
from .projector_pinyin_llm import AudioSlots, PinyinBridge, PoolingProjector, length_mask


PROJECTORS = {"pooling": PoolingProjector, "pinyin_bridge": PinyinBridge}
TOKENS_A_CHARACTER = 3  # UTF-8 bytes of a Han character that the tokenizer does not know
AUTO_MAP = {
    "AutoConfig": "configuration_pinyin_llm.PinyinLlamaConfig",
    "AutoModel": "modeling_pinyin_llm.PinyinLlamaForASR",
    "AutoModelForSpeechSeq2Seq": "modeling_pinyin_llm.PinyinLlamaForASR",
    "AutoModelForMultimodalLM": "modeling_pinyin_llm.PinyinLlamaForASR",
    "AutoProcessor": "processing_pinyin_llm.PinyinLlamaProcessor",
}


@dataclass
class PinyinLlamaOutput(ModelOutput):
    """What `forward` gives.

    Args:
        loss: Mean cross-entropy of the labels, plus the weighted CTC loss where pinyin labels were given.
        logits: (B, L, vocabulary), the last `logits_to_keep` positions.
        ctc_loss: The bridge's CTC loss alone.
        cache: Cache of the language model.
        hidden_states: Of the language model, on request.
        attentions: Of the language model, on request.
        pinyin: (B, N) unit ids that the bridge heard, -1 where a slot is empty.
        pinyin_times: (B, N, 2) seconds in which each is heard: from its CTC spike to the next, or to the end.
        pinyin_confidence: (B, N) probability of the unit heard.
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
            # The slot starts as pure pinyin, which is what stage 1 has taught the language model to read.
            init.zeros_(module.residual.weight)
            init.zeros_(module.residual.bias)


class PinyinLlamaForASR(PinyinLlamaPreTrainedModel, GenerationMixin):
    """Speech or pinyin in, characters out.

    The prompt holds placeholders (`config.audio_token_id`, `config.pinyin_token_id`); speech projected by
    `multi_modal_projector` or rows of `pinyin_embeddings` take their places.
    """

    def __init__(self, config: PinyinLlamaConfig):
        super().__init__(config)
        self.audio_tower = PinyinLlamaAudioTower._from_config(config.audio_config)
        self.multi_modal_projector = PROJECTORS[config.projector_type](config)
        self.pinyin_embeddings = nn.Embedding(config.pinyin_vocab_size, config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.delta, config.delta = config.delta, None  # the bases, if known; the model in memory is whole
        self.adapters: list[tuple] = []  # LoRA already merged into them, for the next delta
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
        from .pipeline_pinyin_llm import CUSTOM_PIPELINES  # the import takes its file along into the folder

        self.config.auto_map, self.config.custom_pipelines = dict(AUTO_MAP), CUSTOM_PIPELINES
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """As in transformers, but a checkpoint that lacks weights or holds NaN is refused, never filled at random.

        Raises:
            ValueError: The keys that are missing, left over, of another shape, or not finite.
        """
        source = pretrained_model_name_or_path
        kwargs = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}  # both are refused below
        try:
            if config := read_delta_config(source, kwargs):
                model, info = load_delta(cls, source, config, kwargs)
            else:
                model, info = super().from_pretrained(source, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"{source}: broken safetensors ({error}). Fetch it again.") from error
        problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        # quantized tensors are classes of their own, which know no isfinite
        plain = [(name, t) for name, t in tensors if t.device.type != "meta" and type(t.data) is torch.Tensor]
        broken = [name for name, t in plain if not t.isfinite().all()]
        if broken:
            problems["not finite"] = broken
        if problems:
            report = "; ".join(f"{kind}: {', '.join(keys[:8])} ({len(keys)})" for kind, keys in problems.items())
            raise ValueError(f"{source} is no whole PinyinLLM checkpoint. {report}. Fetch it again.")
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
    def from_parts(cls, config: PinyinLlamaConfig, audio_tower, language_model):
        """The model around parts that are in memory already, of which nothing is copied; the rest is untrained, float32."""
        with torch.device("meta"):
            model = cls(config)
        model.audio_tower, model.language_model = audio_tower, language_model
        model.multi_modal_projector = PROJECTORS[config.projector_type](config)
        model.pinyin_embeddings = nn.Embedding(config.pinyin_vocab_size, config.hidden_size)
        for part in (model.multi_modal_projector, model.pinyin_embeddings):
            part.apply(model._init_weights)
        return model

    def get_pinyin_features(self, pinyin_ids: torch.Tensor) -> AudioSlots:
        """(B, N) or (B, N, K) unit ids, -1 for none -> slots that read the mean of the rows named.

        K ids in a slot stand for a syllable without its tone, or for one that was heard between two units.
        """
        ids = pinyin_ids.reshape(*pinyin_ids.shape[:2], -1)
        named = (ids >= 0).unsqueeze(-1)
        rows = self.pinyin_embeddings(ids.clamp(min=0)) * named  # B, N, K, H
        vectors = rows.sum(2) / named.sum(2).clamp(min=1)
        filled = named.any(2).squeeze(-1)
        return AudioSlots(vectors=vectors, filled=filled, bound=filled.sum(-1))

    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
    ) -> AudioSlots:
        """(B, M, F) log-mel (or its cached encoder output, (B, T, D)) and (B, F) mask -> slots (B, N, H)."""
        if audio_hidden_states is None:
            audio_hidden_states = self.audio_tower(input_features, input_features_mask)
        mel_frames = input_features_mask.sum(-1)
        frames = num_encoder_frames(mel_frames)
        audio_hidden_states = audio_hidden_states.to(self.pinyin_embeddings.weight.dtype)
        slots = self.multi_modal_projector(audio_hidden_states, frames, self.pinyin_embeddings.weight)
        slots.bound = num_audio_slots(mel_frames, self.config.projector_stride)
        return slots

    def _fill(self, token_id, slots, input_ids, inputs_embeds, attention_mask):
        """Put `slots` where `input_ids` has `token_id`; empty slots are masked out of attention."""
        places = input_ids == token_id
        counts = places.sum(-1)
        if not torch.equal(counts, slots.bound):
            raise ValueError(
                f"Expected {slots.bound.tolist()} placeholders (id {token_id}) in the rows of input_ids, found "
                f"{counts.tolist()}. Let PinyinLlamaProcessor make input_ids and features together."
            )
        offered = length_mask(slots.bound, slots.vectors.shape[1])
        vectors = slots.vectors[offered].to(inputs_embeds.dtype)
        inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1), vectors)
        filled = slots.filled[offered].to(attention_mask.dtype)
        return inputs_embeds, attention_mask.masked_scatter(places, filled)

    def merge_inputs(self, input_ids, attention_mask, slots_by_token):
        """Token ids with placeholders -> (inputs_embeds (B, L, H), attention_mask (B, L), or `None` without slots)."""
        placeholders = (input_ids == self.config.audio_token_id) | (input_ids == self.config.pinyin_token_id)
        inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(placeholders, 0))
        if attention_mask is None and slots_by_token:  # in a cached step, ones for the new token would hide the cache
            attention_mask = torch.ones_like(input_ids)
        for token_id, slots in slots_by_token.items():
            inputs_embeds, attention_mask = self._fill(token_id, slots, input_ids, inputs_embeds, attention_mask)
        return inputs_embeds, attention_mask

    def _slots(self, pinyin_ids, input_features, input_features_mask, audio_hidden_states) -> dict[int, AudioSlots]:
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
        slots = self._slots(pinyin_ids, input_features, input_features_mask, audio_hidden_states)
        heard = slots.get(self.config.audio_token_id)
        values = dict(heard.pinyin) if heard is not None else {}
        if pinyin_labels is not None:
            values["ctc_loss"] = self._ctc_loss(heard, pinyin_labels, kwargs.get("num_items_in_batch"))
        if input_ids is not None or inputs_embeds is not None:
            if inputs_embeds is None:
                inputs_embeds, attention_mask = self.merge_inputs(input_ids, attention_mask, slots)
            values |= self._read(
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

    def _read(self, inputs_embeds, attention_mask, labels, position_ids, cache, logits_to_keep, **kwargs) -> dict:
        """The language model's part of `forward`, as fields of its output."""
        if self.training and attention_mask is not None and labels is not None:
            inputs_embeds, attention_mask, labels = drop_empty(attention_mask, inputs_embeds, labels)
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

    def _ctc_loss(self, heard: AudioSlots | None, pinyin_labels: torch.Tensor, num_items_in_batch) -> torch.Tensor:
        """The bridge's loss on the units spoken, (B, N) with -100 for none."""
        if heard is None or heard.log_probs is None:
            raise ValueError(
                "pinyin_labels teach the bridge what speech says: expected input_features and "
                f"projector_type='pinyin_bridge', found {'no speech' if heard is None else 'a pooling projector'}."
            )
        return self.multi_modal_projector.ctc_loss(heard.log_probs, heard.frames, pinyin_labels, num_items_in_batch)

    def _placeholders_in_vocabulary(self) -> list[int]:
        """Placeholders that could be written: some language models have more rows than their tokenizer has tokens."""
        return [i for i in (self.config.audio_token_id, self.config.pinyin_token_id) if i < self.config.vocab_size]

    def _is_bounded(self, kwargs: dict) -> bool:
        """Whether the call or a generation config says how long an answer may be."""
        given = kwargs.get("generation_config") or self.generation_config
        sources = (kwargs, vars(given), vars(self.generation_config))
        return any(source.get(name) is not None for source in sources for name in ("max_new_tokens", "max_length"))

    def _searches_beams(self, kwargs: dict) -> bool:
        config = kwargs.get("generation_config") or self.generation_config
        return (kwargs.get("num_beams") or config.num_beams or 1) > 1

    def _units_of(self, slots: dict[int, AudioSlots], pinyin_ids: torch.Tensor | None) -> torch.Tensor:
        """What a constraint is bound to: the probabilities heard, or the ids typed."""
        (filling,) = slots.values()
        units = filling.units if filling.units is not None else pinyin_ids
        if units is None:
            raise ValueError(
                f"projector_type={self.config.projector_type!r} hears no pinyin: expected pinyin_ids or a pinyin_bridge "
                "for pinyin_constraint. Leave the constraint out."
            )
        return units

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        audio_slots: AudioSlots | None = None,
        pinyin_ids: torch.LongTensor | None = None,
        pinyin_constraint=None,
        logits_processor=None,
        **kwargs,
    ):
        """Characters for speech or pinyin: `GenerationMixin.generate` after the slots are filled once.

        Args:
            audio_slots: What `get_audio_features` gave for the speech, in place of its features.
            pinyin_constraint: A [`PinyinConstraint`]: each slot may only write what can be read so.
            **kwargs: As in `GenerationMixin.generate` (`num_beams`, ...); by default an answer may take as many tokens as
                a character for each slot can need.

        Returns:
            Token ids, prompt included, as in every decoder-only model.
        """
        plain = logits_processor is None and is_plain_greedy(self.generation_config, kwargs)
        config = kwargs.get("generation_config") or self.generation_config
        if placeholders := self._placeholders_in_vocabulary():
            suppressed = kwargs.get("suppress_tokens", config.suppress_tokens) or []
            kwargs["suppress_tokens"] = [*suppressed, *placeholders]
        slots = self._slots(pinyin_ids, input_features, input_features_mask, audio_hidden_states)
        if audio_slots is not None:
            slots[self.config.audio_token_id] = audio_slots
        if slots:
            kwargs["inputs_embeds"], attention_mask = self.merge_inputs(input_ids, attention_mask, slots)
            if not self._is_bounded(kwargs):
                most = max(int(filling.bound.max()) for filling in slots.values())
                kwargs["max_new_tokens"] = TOKENS_A_CHARACTER * most + 2
        if pinyin_constraint is not None:
            beams = self._searches_beams(kwargs)
            bound = pinyin_constraint.bind(self._units_of(slots, pinyin_ids), input_ids.shape[1], beams)
            if beams and config.length_penalty is None:
                # a sum: by the mean, a character of three tokens would go before one of one token
                kwargs.setdefault("length_penalty", 0.0)
            if plain:
                return write_in_passes(self, input_ids, kwargs["inputs_embeds"], attention_mask, bound)
            logits_processor = [*(logits_processor or []), bound]
        return super().generate(
            input_ids=input_ids, attention_mask=attention_mask, logits_processor=logits_processor, **kwargs
        )


def drop_empty(attention_mask: torch.Tensor, inputs_embeds: torch.Tensor, labels: torch.Tensor):
    """Embeddings (B, L, H), mask and labels (B, L) without the positions that nothing attends to, padded on the left.

    A bridge fills a third of its slots; the others need not go through the language model.
    """
    longest = int(attention_mask.sum(-1).max())
    kept = attention_mask.argsort(dim=-1, stable=True)[:, -longest:]  # B, K: what is masked comes first
    embeds = inputs_embeds.take_along_dim(kept.unsqueeze(-1), 1)
    return embeds, attention_mask.gather(1, kept), labels.gather(1, kept)


__all__ = ["PinyinLlamaForASR", "PinyinLlamaPreTrainedModel"]
