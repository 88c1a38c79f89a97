"""The metric of Hugging Face evaluate loads from the repository, and gives what `scoring.score` gives."""

from pathlib import Path

import evaluate

from pinyin_llm.scoring.cer import score


def test_metric_equals_score():
    metric = evaluate.load(str(Path(__file__).parents[1] / "scoring" / "cer_metric.py"))
    references, predictions = ["你好，中国！", "2个人"], ["你号中国", "两个"]
    expected = score(references, predictions).to_dict()
    results = metric.compute(predictions=predictions, references=references)
    assert results == {name: expected[name] for name in results}
    assert results["cer"] == 2 / 7
    assert results["homophones"] == 0.5
