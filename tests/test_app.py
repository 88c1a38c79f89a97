"""The demo page as people meet it: in a browser, and with what they should not send."""

import re
import shutil
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import COMMAND_LINE, free_port, warm_process
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import metadata_load

from pinyin_llm.inference.loading import MINI_MODEL
from pinyin_llm.tokenization_pinyin_llm import PinyinTokenizer


ROOT = Path(__file__).parents[1]
SOUND, TEXT = ROOT / "samples" / "BAC009S0764W0121.wav", "甚至出现交易几乎停滞的情况"
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
SECONDS_TO_START = 60  # 5 s on an idle laptop


@pytest.fixture(scope="module")
def page():
    """The address of the page, with the mini model behind it."""
    port = free_port()
    process = warm_process().start(COMMAND_LINE, "demo", "--model", MINI_MODEL, "--port", port)
    address, end = f"http://127.0.0.1:{port}", time.time() + SECONDS_TO_START
    while time.time() < end:
        try:
            urllib.request.urlopen(address).read()
            break
        except OSError:
            time.sleep(0.25)
    yield address
    process.kill(signal.SIGTERM)
    process.wait()


@pytest.fixture(scope="module")
def client(page) -> Client:
    return Client(page, verbose=False)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium whose microphone says the sample."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver fonts-noto-cjk")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    fake = (
        "use-fake-device-for-media-stream",
        "use-fake-ui-for-media-stream",
        f"use-file-for-fake-audio-capture={SOUND}",
    )
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1100,1300", *fake):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(30)
    yield driver
    driver.quit()


def value(browser, selector: str) -> str:
    """What a text box says, once it says something."""
    from selenium.webdriver.support.ui import WebDriverWait

    find = lambda driver: driver.find_element("css selector", selector).get_attribute("value")  # noqa: E731
    return WebDriverWait(browser, 60).until(find)


def test_upload_in_a_browser(page, browser):
    browser.get(page)
    browser.find_element("css selector", "input[type=file]").send_keys(str(SOUND))
    browser.find_element("css selector", "audio, .waveform-container, [data-testid=waveform-SOUND]")
    time.sleep(2)  # the upload itself
    browser.find_element("id", "transcribe").click()
    assert value(browser, "#text textarea") == TEXT
    ruby = browser.find_elements("css selector", "#spoken ruby")
    assert [cell.text.splitlines()[-1] for cell in ruby[:2]] == ["shèn", "zhì"]
    browser.set_window_size(390, 900)  # a phone
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    browser.set_window_size(1100, 1300)


def test_microphone_in_a_browser(page, browser):
    browser.get(page)
    browser.find_element("css selector", "[aria-label='Record audio'], button[title*=icrophone]").click()
    browser.find_element("css selector", ".record-button, button.record").click()
    time.sleep(6)
    browser.find_element("css selector", ".stop-button, button.stop").click()
    time.sleep(3)
    browser.find_element("id", "transcribe").click()
    assert "出现交易" in value(browser, "#text textarea")


def test_pinyin_while_typing(page, browser):
    browser.get(page)
    next(tab for tab in browser.find_elements("css selector", "button[role=tab]") if "Pinyin" in tab.text).click()
    browser.find_element("css selector", "#typed textarea, #typed input").send_keys("jin1 tian1 tian1 qi4 h")
    time.sleep(3)
    assert value(browser, "#written textarea") == "今天天气"


def test_twenty_at_once_and_what_is_no_sound(client, tmp_path):
    (tmp_path / "notes.txt").write_text("no sound at all")
    with pytest.raises(AppError, match="cannot be read as sound"):
        client.predict(handle_file(tmp_path / "notes.txt"), api_name="/transcribe")
    (tmp_path / "huge.wav").write_bytes(bytes(100 * 2**20))
    with pytest.raises(Exception, match="(?i)too large|exceeds|413"):
        client.predict(handle_file(tmp_path / "huge.wav"), api_name="/transcribe")
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda _: client.predict(handle_file(SOUND), api_name="/transcribe"), range(20))
        assert [answer[0] for answer in answers] == [TEXT] * 20


def test_downloads_carry_their_content(client, tmp_path):
    sound = shutil.copy(SOUND, tmp_path / "talk <b>.v1.wav")
    links = client.predict(handle_file(sound), api_name="/transcribe")[3]
    files = dict(re.findall(r'download="([^"]+)" href="data:text/plain;charset=utf-8,([^"]+)"', links))
    assert [name.rpartition(".")[2] for name in files] == ["txt", "srt"]
    assert all("v1" in name and "<" not in name for name in files)
    txt, srt = map(unquote, files.values())
    assert txt == f"{TEXT}\n"
    assert " --> " in srt


def test_a_long_line_of_pinyin_is_cut(client):
    start = time.time()
    best = client.predict("ni3 hao3 " * 1000, api_name="/convert")[0]
    assert 0 < len(best) <= 60
    assert time.time() - start < 30  # 480 syllables would take 23 s, with everyone else waiting


def test_tone_marks():
    units = ["hao3", "lü4", "jiu3", "gui1", "ou3", "xue2", "de5", "er2", "zhuang4"]
    assert list(map(PinyinTokenizer.accented, units)) == ["hǎo", "lǜ", "jiǔ", "guī", "ǒu", "xué", "de", "ér", "zhuàng"]


def test_a_space_is_app_samples_and_two_files(tmp_path):
    """It runs where this package is not installed, with the model that MODEL names."""
    for path in (ROOT / "inference" / "demo.py", *(ROOT / "publishing" / "hub" / "space").iterdir()):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    front = metadata_load(tmp_path / "README.md")
    assert (front["sdk"], front["app_file"]) == ("gradio", "demo.py")
    script = "import sys; sys.modules['pinyin_llm'] = None; import demo; print(len(demo.find_samples()))"
    run = warm_process().run(script, folder=tmp_path)
    assert run.stdout.strip() == "8", run.stderr
