"""`generate` for prompts whose audio tokens stand for many positions.

Clips are encoded and merged once, before beams or samples are made. From then on the caller's ids (one token a clip)
and the merged row (embeddings, mask, cache) differ by a constant number of positions.
"""

import torch
from transformers.generation import GenerationMixin


class SoundwaveGenerationMixin(GenerationMixin):
    """The four hooks of `generate` at which the merged row differs from the caller's ids."""

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        inputs, input_name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)
        clips = {
            name: model_kwargs.pop(name)
            for name in ("input_features", "input_features_mask", "encoder_states", "encoder_mask")
            if name in model_kwargs
        }
        has_clips = clips.get("input_features") is not None or clips.get("encoder_states") is not None
        # A prompt of embeddings has no audio token left to replace; a cache may hold the clips of an earlier turn.
        if not has_clips or input_name != "input_ids":
            if input_name == "input_ids" and model_kwargs.get("past_key_values") is None:
                self.model.check_text(inputs)
            return inputs, input_name, model_kwargs
        audio = self.get_audio_features(**clips)
        merged = self.model.merge_audio(
            inputs, audio.pooler_output, audio.num_positions, model_kwargs.get("attention_mask")
        )
        model_kwargs["inputs_embeds"] = merged.inputs_embeds
        model_kwargs["attention_mask"] = merged.attention_mask
        model_kwargs["position_ids"] = None  # counted anew from the merged mask
        model_kwargs["prompt_length"] = inputs.shape[1]
        model_kwargs["num_added"] = merged.inputs_embeds.shape[1] - inputs.shape[1]
        # The name stays "input_ids", so that lengths, streamers and the answer are counted in the caller's ids.
        return inputs, input_name, model_kwargs

    def _prepare_attention_mask_for_generation(self, inputs_tensor, generation_config, model_kwargs):
        if "num_added" in model_kwargs:
            return model_kwargs["attention_mask"]
        return super()._prepare_attention_mask_for_generation(inputs_tensor, generation_config, model_kwargs)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        max_cache_length += model_kwargs.get("num_added", 0)
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        is_first_iteration=False,
        prompt_length=None,
        num_added=None,
        **kwargs,
    ):
        if num_added is not None and inputs_embeds is not None:
            # Without a cache each step runs the whole row: the merged prompt and what was generated since.
            whole_row = is_first_iteration or not kwargs.get("use_cache", True)
            new_ids = input_ids[:, prompt_length:]
            if whole_row and new_ids.shape[1] > 0:
                new_embeds = self.get_input_embeddings()(new_ids).to(inputs_embeds)
                inputs_embeds = torch.cat([inputs_embeds, new_embeds], dim=1)
                if next_sequence_length is not None:
                    next_sequence_length += new_ids.shape[1]
            is_first_iteration = whole_row
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )


__all__ = ["SoundwaveGenerationMixin"]
