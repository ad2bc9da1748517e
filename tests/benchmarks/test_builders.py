"""The benchmark of builders runs every builder, and notices a template that loses something."""

from argparse import Namespace

import pytest


def test_every_builder_has_a_line_and_every_row_is_rendered(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "CLIPS", 6)
    monkeypatch.setattr(benchmark, "SOUNDS", 2)
    lines = benchmark.measure(tmp_path, Namespace(rows=60, processes=1, timed=0, model="", seed=0))
    table = [line.strip("| ").split(" | ")[:3] for line in lines[2:6]]
    assert table == [[name, "60", "0"] for name in ("sounds", "conversations", "tasks", "spoken")]
    assert lines[-1] == "Rendered without an error: 240 by Llama 3, 240 by ChatML, 240 by Gemma."


MESSAGES = [
    {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
]


@pytest.mark.parametrize("name", ["Llama 3", "ChatML", "Gemma"])
def test_a_template_that_loses_the_answer_is_an_error(benchmark, name):
    row = {"audio": "a.wav", "messages": MESSAGES}
    assert benchmark.render_all([row], benchmark.TEMPLATES[name]) == 1
    with pytest.raises(RuntimeError, match="The template lost"):
        benchmark.render_all(
            [row], benchmark.TEMPLATES[name].replace("for message in messages", "for message in messages[:-1]")
        )
