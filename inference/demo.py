"""The demo page: speech to text with the pinyin above each character, and pinyin to text as you type.

It needs only transformers and gradio, so this file is a Space as it is:  MODEL=user/model python demo.py
"""

import html
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import gradio as gr


TITLE = "# 拼音语音识别 · PinyinLLM"
EXAMPLE = "jin1 tian1 tian1 qi4 hen3 hao3"
MOST_BYTES = 50 * 2**20
MOST_TYPED = 240  # characters: some 40 syllables, the longest line that the model was trained on
KEPT_SECONDS = 600  # how long an uploaded sound stays in the cache
NUM_ALTERNATIVES = 5
CSS = """
.spoken {font-size: 1.6rem; line-height: 2.6; overflow-wrap: anywhere}
.spoken rt {font-size: 0.8rem}
.spoken ruby {border-radius: 0.3rem; padding: 0 0.1rem}
.files a {display: inline-block; margin-right: 0.5rem; padding: 0.3rem 0.8rem; border: 1px solid #d4d4d8; border-radius:
0.5rem} footer {display: none !important}
"""


def launch(asr, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until it is stopped.

    Args:
        asr: The pipeline of a PinyinLLM model.
    """
    page = build_page(asr)
    page.queue(max_size=32).launch(server_name=host, server_port=port, max_file_size=MOST_BYTES, css=CSS)


def build_page(asr) -> gr.Blocks:
    """Two tabs around one pipeline."""
    with gr.Blocks(title="PinyinLLM", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(TITLE)
        with gr.Tab("语音 · Speech"):
            _build_speech(asr)
        with gr.Tab("拼音 · Pinyin"):
            _build_pinyin(asr)
    return page


def _build_speech(asr) -> None:
    sound = gr.Audio(sources=["upload", "microphone"], type="filepath", label="录音或上传 · Record or upload")
    button = gr.Button("识别 · Transcribe", variant="primary", elem_id="transcribe")
    text = gr.Textbox(label="文字 · Text", buttons=["copy"], interactive=False, elem_id="text")
    spoken = gr.HTML(label="拼音 · Pinyin recognised", elem_id="spoken")
    files = gr.HTML(elem_id="files")
    others = gr.Dataframe(headers=["候选 · Alternatives", "分数 · Score"], interactive=False, elem_id="others")
    outputs = [text, spoken, others, files]
    button.click(lambda path: transcribe_sound(asr, path), sound, outputs, api_name="transcribe", concurrency_limit=1)
    if samples := find_samples():
        gr.Examples(samples, sound, label="示例 · Samples")


def _build_pinyin(asr) -> None:
    typed = gr.Textbox(
        label="拼音 · Pinyin", placeholder=EXAMPLE, elem_id="typed", autofocus=True, max_length=MOST_TYPED
    )
    best = gr.Textbox(label="文字 · Text", buttons=["copy"], interactive=False, elem_id="written")
    others = gr.Dataframe(headers=["候选 · Candidates"], interactive=False, elem_id="alternatives")
    note = gr.Markdown()
    typed.input(
        lambda line: convert(asr, line), typed, [best, others, note], api_name="convert",
        trigger_mode="always_last", show_progress="hidden", concurrency_limit=1,
    )  # fmt: skip
    gr.Examples([EXAMPLE, "wo men qu chi fan ba", "nǐ hǎo"], typed, label="示例 · Samples",
                fn=lambda line: convert(asr, line), outputs=[best, others, note], run_on_click=True)  # fmt: skip


def find_samples() -> list[str]:
    """The sample sounds: beside this file in a Space, one folder up in the repository."""
    beside, above = (folder / "samples" for folder in Path(__file__).parents[:2])
    folder = beside if beside.is_dir() else above
    return [str(path) for path in sorted(folder.glob("*")) if path.suffix in (".wav", ".flac", ".ogg")]


def transcribe_sound(asr, path: str | None) -> tuple:
    """A sound file -> text, the text with its pinyin above, N-best, and download links."""
    if path is None:
        raise gr.Error("请先录音或上传 · Record or upload a sound first.")
    options = {"return_timestamps": "char", "num_return_sequences": NUM_ALTERNATIVES, "formats": ("txt", "srt")}
    try:
        found = asr(path, **options)
    except ValueError as error:  # not readable as sound; the message names the path of the upload
        raise gr.Error(str(error).replace(path, Path(path).name)) from error
    others = [[row["text"], round(row["score"], 2)] for row in found["alternatives"]]
    text = found["text"] or "（没有识别出语音 · no speech was recognised）"
    links = as_links({f"{Path(path).stem}.{kind}": found[kind] for kind in options["formats"]})
    return text, as_ruby(found["chunks"], asr.processor.pinyin_tokenizer.accented), others, links


def as_links(files: dict[str, str]) -> str:
    """{name: content} -> links that contain the content, so that nothing is left on the server."""
    cells = []
    for name, content in files.items():
        address, label = f"data:text/plain;charset=utf-8,{quote(content)}", html.escape(name)
        cells.append(f'<a download="{label}" href="{address}">⬇ {label}</a>')
    return f'<div class="files">{"".join(cells)}</div>'


def as_ruby(chunks: list[dict], accented: Callable[[str], str]) -> str:
    """Characters with their pinyin above; the less confident a syllable, the redder its background."""
    cells = []
    for chunk in chunks:
        doubt = round(100 * (1 - chunk["confidence"]))
        title = f"{chunk['pinyin']} {100 - doubt} % · {chunk['timestamp'][0]:.2f} s"
        ground = f"background: color-mix(in srgb, #ef4444 {doubt}%, transparent)"
        character, pinyin = html.escape(chunk["text"]), accented(chunk["pinyin"])
        cells.append(f'<ruby style="{ground}" title="{title}">{character}<rt>{pinyin}</rt></ruby>')
    return f'<div class="spoken">{" ".join(cells)}</div>'


def convert(asr, line: str) -> tuple[str, list[list[str]], str]:
    """What has been typed so far -> the best text, the alternatives, and what is not a syllable, or not yet."""
    line = line[:MOST_TYPED]
    if not line.strip():
        return "", [], ""
    *before, last = line.split()
    problem = ""
    for head, rest in ((line, ""), (" ".join(before), f"… {last}")):  # the last syllable may be half typed
        try:
            texts = _alternatives(asr, asr.processor(pinyin=head))
        except ValueError as error:
            problem = problem or str(error)
            continue
        return texts[0], [[text] for text in texts], rest
    return "", [], problem


def _alternatives(asr, inputs) -> list[str]:
    ids = asr.model.generate(
        **inputs.to(asr.model.device),
        pinyin_constraint=asr.processor.pinyin_constraint(),
        num_beams=NUM_ALTERNATIVES,
        num_return_sequences=NUM_ALTERNATIVES,
    )
    return list(dict.fromkeys(asr.processor.decode_answers(ids, inputs["input_ids"].shape[1])))


if __name__ == "__main__":
    from transformers import pipeline

    model = os.environ.get("MODEL", str(Path(__file__).parents[1]))
    launch(pipeline("automatic-speech-recognition", model=model, trust_remote_code=True), "0.0.0.0")
