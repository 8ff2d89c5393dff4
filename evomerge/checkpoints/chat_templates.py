"""Chat templates: those with a name, and which one a merged model gets.

Jinja templates, as transformers renders them (``trim_blocks`` and ``lstrip_blocks``). The names are mergekit's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import ConfigError, Problem

AUTO = "auto"
TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_ALPACA = """\
{%- set headings = {'user': 'Instruction', 'assistant': 'Response', 'user_context': 'Input'} %}
{%- for message in messages if message['role'] == 'system' and message['content'] %}
    {{- message['content'] | trim + '\\n\\n' if loop.last }}
{%- endfor %}
{%- for message in messages if message['role'] in headings %}
    {{- '### ' + headings[message['role']] + ':\\n' + message['content'] | trim }}
    {{- '' if loop.last else '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' %}
    {{- '\\n\\n### Response:\\n' }}
{%- endif %}
"""
_MISTRAL = """\
{%- set preface = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}
{%- set turns = messages[1:] if preface else messages %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message['role'] != ('user', 'assistant')[loop.index0 % 2] %}
        {{- raise_exception('after the system message, if any, user and assistant must take turns') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- ' [INST] ' + (preface if loop.first else '') + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
_EXAONE = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '[|system|][|endofturn|]\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '[|' + message['role'] + '|]' + message['content'] }}
    {{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[|assistant|]' }}
{%- endif %}
"""
CHAT_TEMPLATES = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}


def template_of(folder: Path) -> str | None:
    """Return the chat template of a model folder, the default one if it has several; None without one."""
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    for name in (TOKENIZER_CONFIG, OLD_TEMPLATE_FILE):
        try:
            template = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(template, list):
            template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
        if isinstance(template, str) and template:
            return template
    return None


def commonest_template(folders: Sequence[Path]) -> str | None:
    """Return the template that most of the folders have, white space around it apart; the first one on a tie."""
    templates = [template.strip() for folder in folders if (template := template_of(folder))]
    return Counter(templates).most_common(1)[0][0] if templates else None


def check_template(template: str) -> None:
    """Raise ConfigError if this is no Jinja template."""
    import jinja2

    names = ", ".join([AUTO, *CHAT_TEMPLATES])
    hint = f"write one of {names}, a model of the recipe, or the Jinja template itself"
    if "{" not in template:
        raise ConfigError(Problem(f"chat_template {template!r} is no template", "chat_template", hint))
    if "{% generation" in template or "{%- generation" in template:  # transformers' own tag, unknown to Jinja
        return
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(template)
    except jinja2.TemplateSyntaxError as error:
        what = f"the chat template is no valid Jinja: line {error.lineno}: {error.message}"
        raise ConfigError(Problem(what, "chat_template", "mend the template")) from error


def write_template(template: str, folder: Path) -> None:
    """Make ``template`` the chat template of a model folder, wherever the folder has one already."""
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    for name in (TOKENIZER_CONFIG, OLD_TEMPLATE_FILE):
        file = folder / name
        fields = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if "chat_template" in fields:
            text = json.dumps(fields | {"chat_template": template}, indent=2, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")
