"""The chat template that goes with the tokenizers we train."""

from typing import Final

DEFAULT_TEMPLATE: Final = """\
{#- The form of DeepSeek-V3.1: thinking is off unless asked for, and every answer and every tool call is closed. -#}
{%- if thinking is not defined %}{% set thinking = false %}{% endif %}

{%- macro text(content) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for part in content %}
            {%- if part is string %}
                {{- part }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] }}
            {%- else %}
                {{- raise_exception('this model reads text only, not ' ~ part['type']) }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is defined and content is not none %}
        {{- raise_exception('the content of a message is neither text nor a list of parts') }}
    {%- endif %}
{%- endmacro %}

{#- System messages go first, wherever they stand. -#}
{%- set state = namespace(system='', last='') %}
{%- for message in messages if message['role'] == 'system' %}
    {%- set state.system = state.system ~ ('\\n\\n' if state.system else '') ~ text(message['content']) %}
{%- endfor %}
{{- bos_token ~ state.system }}
{%- if tools %}
    {{- '\\n\\n' if state.system }}
    {{- '## Tools\\n\\nYou can call these tools.\\n' }}
    {%- for tool in tools %}
        {%- set tool = tool['function'] if tool['function'] is defined else tool %}
        {{- '\\n### ' ~ tool['name'] ~ '\\n' }}
        {{- 'Description: ' ~ tool['description'] ~ '\\n' if tool['description'] }}
        {{- 'Parameters: ' ~ (tool['parameters'] | default({}) | tojson) ~ '\\n' }}
    {%- endfor %}
    {{- '\\nTo call tools, write exactly this, with the arguments as JSON, and one further call after another:\\n' }}
    {{- '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>' }}
    {{- '<｜tool▁calls▁end｜>\\n' }}
{%- endif %}

{%- for message in messages if message['role'] != 'system' %}
    {%- set content = text(message['content']) %}
    {%- if message['role'] == 'user' %}
        {{- '<｜User｜>' ~ content }}
    {%- elif message['role'] == 'assistant' %}
        {#- After a tool's result the same turn goes on. -#}
        {{- '<｜Assistant｜></think>' if state.last != 'tool' }}
        {{- content.split('</think>', 1)[1] if '</think>' in content else content }}
        {%- if message['tool_calls'] %}
            {{- '<｜tool▁calls▁begin｜>' }}
            {%- for call in message['tool_calls'] %}
                {%- set call = call['function'] if call['function'] is defined else call %}
                {{- '<｜tool▁call▁begin｜>' ~ call['name'] ~ '<｜tool▁sep｜>' }}
                {{- call['arguments'] if call['arguments'] is string else call['arguments'] | default({}) | tojson }}
                {{- '<｜tool▁call▁end｜>' }}
            {%- endfor %}
            {{- '<｜tool▁calls▁end｜>' }}
        {%- endif %}
        {{- eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '<｜tool▁output▁begin｜>' ~ content ~ '<｜tool▁output▁end｜>' }}
    {%- else %}
        {{- raise_exception('this model knows the roles system, user, assistant and tool, not ' ~ message['role']) }}
    {%- endif %}
    {%- set state.last = message['role'] %}
{%- endfor %}

{%- if add_generation_prompt and state.last != 'tool' %}
    {{- '<｜Assistant｜>' ~ ('<think>' if thinking else '</think>') }}
{%- endif %}
"""
"""The chat template of models that we train.

Where it leaves V3.1: an assistant's turn is opened even if no user spoke before it, tools are described in words of
our own, and content may be a list of text parts. `thinking=true` opens a turn with `<think>`; only the last turn can
have it.
"""
