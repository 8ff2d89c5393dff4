"""Chat templates: what the named ones render, the commonest, and where a template is written."""

import json

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from evomerge.checkpoints.chat_templates import (
    CHAT_TEMPLATES,
    check_template,
    commonest_template,
    template_of,
    write_template,
)
from evomerge.errors import ConfigError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
# What the models that brought these formats write.
RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi"
    "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be brief.\n\nHello [/INST] Hi</s> [INST] Bye [/INST]",
    "alpaca": "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi\n\n### Instruction:\nBye\n\n### Response:\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi[|endofturn|]\n[|user|]Bye\n"
    "[|assistant|]",
}


def render(template, talk, prompt=True):
    return render_jinja_template(
        [talk], chat_template=template, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )[0][0]


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_named_templates_render_their_models_format(name):
    check_template(CHAT_TEMPLATES[name])
    assert render(CHAT_TEMPLATES[name], TALK) == RENDERED[name]
    without = render(CHAT_TEMPLATES[name], TALK, prompt=False)
    assert RENDERED[name].startswith(without.rstrip("\n"))


def test_turns_out_of_order_are_refused_by_mistrals_template():
    with pytest.raises(Exception, match="take turns"):
        render(CHAT_TEMPLATES["mistral"], [TALK[2], TALK[1]])


def test_the_commonest_template_wins(tmp_path):
    folders = [tmp_path / str(index) for index in range(4)]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "chat_template.jinja").write_text("{{ first }}")
    (folders[1] / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ common }}\n"}))
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": "{{ common }}"}]
    (folders[2] / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert template_of(folders[2]) == "{{ common }}"
    assert template_of(folders[3]) is None
    assert commonest_template(folders) == "{{ common }}"
    assert commonest_template(folders[3:]) is None


def test_a_template_is_written_wherever_one_was(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ old }}", "eos_token": "</s>"}))
    write_template("{{ new }}", tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ new }}"
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert said == {"chat_template": "{{ new }}", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [("chatlm", "'chatlm' is no template"), ("{% if %}", "no valid Jinja: line 1")],
)
def test_what_is_no_template_is_refused(template, expected):
    with pytest.raises(ConfigError, match=expected):
        check_template(template)
