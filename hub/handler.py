"""What a Hugging Face inference endpoint runs: sound in, text out.

Raw sound bytes with an audio content type, or JSON {"inputs": base64 of a sound file, "parameters": {...}}; the parameters are
those of the pipeline: return_timestamps, num_return_sequences, generate_kwargs.
"""

import base64
import binascii

from transformers import pipeline


class EndpointHandler:
    """The class that the endpoint looks for.

    Args:
        path: Folder of the repository.
    """

    def __init__(self, path: str = ""):
        self.pipeline = pipeline("automatic-speech-recognition", model=path, trust_remote_code=True)

    def __call__(self, data: dict) -> dict:
        """{"inputs": bytes or base64, "parameters": dict} -> the pipeline's answer, or {"error": what was wrong}."""
        try:
            return self.pipeline(_sound(data.get("inputs")), **(data.get("parameters") or {}))
        except (TypeError, ValueError) as error:  # AudioError is a ValueError
            return {"error": str(error)}


def _sound(inputs) -> bytes:
    """Text is base64 and never a path or an address: the endpoint's files are nobody's input."""
    if isinstance(inputs, (bytes, bytearray)):
        return bytes(inputs)
    if not isinstance(inputs, str):
        raise ValueError(f"inputs: expected the bytes of a sound file or their base64, found {type(inputs).__name__}.")
    try:
        return base64.b64decode(inputs, validate=True)
    except binascii.Error as error:
        raise ValueError(
            f"inputs: expected base64 of a wav, flac, mp3 or ogg file, found other text ({error})."
        ) from error
