from .processing_soundwave import ASR_QUESTION, AUDIO_TOKEN, SYSTEM_PROMPT, SoundwaveProcessor


__all__ = ["ASR_QUESTION", "AUDIO_TOKEN", "SYSTEM_PROMPT", "SoundwaveProcessor"]
