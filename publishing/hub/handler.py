"""What a Hugging Face inference endpoint runs: sound in, text out.

Raw sound bytes with an audio content type, or JSON {"inputs": base64 of a sound file, "parameters": {...}}. The
parameters are return_timestamps, formats and num_return_sequences of the pipeline, and num_beams.
"""

import base64
import binascii
import re

from transformers import pipeline


MOST_BEAMS = 16  # who asks decides how much memory is taken
PARAMETERS = ("return_timestamps", "formats", "num_return_sequences", "num_beams")


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
            sound, parameters = _sound(data.get("inputs")), _parameters(data.get("parameters") or {})
            return self.pipeline(sound, **parameters)
        except Exception as error:  # an endpoint answers
            return {"error": str(error) or type(error).__name__}


def _parameters(given: dict) -> dict:
    """The parameters of the request for the pipeline: only the safe ones, within limits.

    `generate` itself can be told to run code from anywhere (custom_generate), so nothing is handed through to it.
    """
    if not isinstance(given, dict) or given.keys() - set(PARAMETERS):
        raise ValueError(f"parameters: expected some of {', '.join(PARAMETERS)}, found {given!r}.")
    for name in ("num_return_sequences", "num_beams"):
        if name in given and not (isinstance(given[name], int) and 1 <= given[name] <= MOST_BEAMS):
            raise ValueError(f"{name}: expected 1 to {MOST_BEAMS}, found {given[name]!r}.")
    parameters = dict(given)
    beams = parameters.pop("num_beams", None)
    return parameters | ({"generate_kwargs": {"num_beams": beams}} if beams else {})


def _sound(inputs) -> bytes:
    """Text is base64 and never a path or an address: the endpoint's files are nobody's input."""
    if isinstance(inputs, (bytes, bytearray)):
        return bytes(inputs)
    if not isinstance(inputs, str):
        raise ValueError(f"inputs: expected the bytes of a sound file or their base64, found {type(inputs).__name__}.")
    text = re.sub(r"^data:[^,]*,|\s", "", inputs)
    try:
        return base64.b64decode(text.translate({ord("-"): "+", ord("_"): "/"}), validate=True)
    except binascii.Error as error:
        raise ValueError(
            f"inputs: expected base64 of a wav, flac, mp3 or ogg file, found other text ({error})."
        ) from error
