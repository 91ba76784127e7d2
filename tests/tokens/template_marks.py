"""What each family writes for each conversation of `template_conversations`, marked by hand: [[what trains]].

One text for each sequence: where a template leaves out earlier reasoning, or writes an answer otherwise once others follow, every
answer trains in a sequence of its own. What stands in the prompt that opens an answer does not train; the token that ends it does.
"""

TOOL = (
    '{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": '
    '{"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}}'
)

# Qwen3: `chat_templates/qwen3.jinja` of trl 1.16.0. Prompts end with `<|im_start|>assistant\n`, so the model samples
# `<think>` itself, also around nothing; the template writes an empty block for the last answer alone, and reasoning only
# after the last question.
QWEN3_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n" + TOOL + "\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
QWEN3_TWO = f"<|im_start|>system\n{QWEN3_TOOLS}<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
QWEN3_CALLS = (
    'Both.\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 3}}\n</tool_call><|im_end|>'
)
QWEN3 = {
    "use": (
        f"<|im_start|>system\nBe brief.\n\n{QWEN3_TOOLS}<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        '[[<think>\nI add.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call><|im_end|>]]\n'
        "<|im_start|>user\n<tool_response>\nfour\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        "[[<think>\nFour.\n</think>\n\nIt is 4.<|im_end|>]]\n",
    ),
    "two": (
        f"{QWEN3_TWO}[[<think>\n\n</think>\n\n{QWEN3_CALLS}]]\n",
        f"{QWEN3_TWO}{QWEN3_CALLS}\n<|im_start|>user\n<tool_response>\nfour\n</tool_response>\n<tool_response>\nsix\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\n4 and 6.<|im_end|>]]\n",
    ),
    "turns": (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n[[<think>\nTwo and two.\n</think>\n\n4<|im_end|>]]\n",
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n[[<think>\nThree and three.\n</think>\n\n6<|im_end|>]]\n",
    ),
}

# Nemotron 3: `chat_templates/nemotron_3_nano.jinja` of trl 1.16.0. Prompts end with `<think>\n`, or `<think></think>` with
# thinking off, which is also what the template writes where no reasoning is.
NEMOTRON_TOOLS = (
    "# Tools\n\nYou have access to the following functions:\n\n<tools>\n<function>\n<name>add</name>\n"
    "<description>Adds.</description>\n<parameters>\n<parameter>\n<name>a</name>\n<type>integer</type>\n</parameter>\n"
    '<parameter>\n<name>b</name>\n<type>integer</type>\n</parameter>\n<required>["a", "b"]</required>\n</parameters>\n'
    "</function>\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n</parameter>\n"
    "</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within "
    "<tool_call></tool_call> XML tags\n- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after\n"
    "- If there is no function call available, answer the question like normal with your current knowledge and do not tell the "
    "user about function calls\n</IMPORTANT><|im_end|>\n"
)
NEMOTRON_ADDS_2 = (
    "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n</tool_call>\n"
)
NEMOTRON_ADDS_3 = (
    "<tool_call>\n<function=add>\n<parameter=a>\n3\n</parameter>\n<parameter=b>\n3\n</parameter>\n</function>\n</tool_call>\n"
)
NEMOTRON = {
    "use": (
        f"<|im_start|>system\nBe brief.\n\n{NEMOTRON_TOOLS}<|im_start|>user\n2+2?<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\n[[I add.\n</think>\n{NEMOTRON_ADDS_2}<|im_end|>]]\n"
        "<|im_start|>user\n<tool_response>\nfour\n</tool_response>\n<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n[[Four.\n</think>\nIt is 4.<|im_end|>]]\n",
    ),
    "two": (
        f"<|im_start|>system\n{NEMOTRON_TOOLS}<|im_start|>user\n2+2?<|im_end|>\n"
        f"<|im_start|>assistant\n<think></think>[[Both.\n{NEMOTRON_ADDS_2}{NEMOTRON_ADDS_3}<|im_end|>]]\n"
        "<|im_start|>user\n<tool_response>\nfour\n</tool_response>\n<tool_response>\nsix\n</tool_response>\n<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>[[4 and 6.<|im_end|>]]\n",
    ),
    "turns": (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n[[Two and two.\n</think>\n4<|im_end|>]]\n",
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think></think>\n4<|im_end|>\n"
        "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n<think>\n[[Three and three.\n</think>\n6<|im_end|>]]\n",
    ),
}

# ChatML with tools: gym_bridge/tokens/chatml_with_tools.jinja. Nothing is rewritten.
CHATML_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML_TOOLS = (
    f"\n\n# Tools\n\nYou may call these functions:\n<tools>\n{TOOL}\n</tools>\n\nTo call one, write:\n<tool_call>\n"
    '{"name": "function name", "arguments": {"argument": "value"}}\n</tool_call><|im_end|>\n'
)
CHATML = {
    "use": (
        f"<|im_start|>system\nBe brief.{CHATML_TOOLS}<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        '[[<think>\nI add.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call><|im_end|>]]\n'
        "<|im_start|>tool\nfour<|im_end|>\n<|im_start|>assistant\n[[<think>\nFour.\n</think>\n\nIt is 4.<|im_end|>]]\n",
    ),
    "two": (
        f"<|im_start|>system\n{CHATML_SYSTEM}{CHATML_TOOLS}<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        f"[[{QWEN3_CALLS}]]\n<|im_start|>tool\nfour<|im_end|>\n<|im_start|>tool\nsix<|im_end|>\n"
        "<|im_start|>assistant\n[[4 and 6.<|im_end|>]]\n",
    ),
    "turns": (
        f"<|im_start|>system\n{CHATML_SYSTEM}<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n[[<think>\nTwo and two.\n</think>\n\n4<|im_end|>]]\n"
        "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n[[<think>\nThree and three.\n</think>\n\n6<|im_end|>]]\n",
    ),
}

# Llama 3.2: `chat_templates/llama3_2.jinja` of trl 1.16.0, with the tools in the first user message. One call at most; the
# family has no place for reasoning.
LLAMA = {
    "use": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with a JSON for a function "
        "call with its proper arguments that best answers the given prompt.\n\n"
        'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
        'Do not use variables.\n\n{\n    "type": "function",\n    "function": {\n        "name": "add",\n'
        '        "description": "Adds.",\n        "parameters": {\n            "type": "object",\n'
        '            "properties": {\n                "a": {\n                    "type": "integer"\n                },\n'
        '                "b": {\n                    "type": "integer"\n                }\n            },\n'
        '            "required": [\n                "a",\n                "b"\n            ]\n        }\n    }\n}\n\n'
        "2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        '[[{"name": "add", "parameters": {"a": 2, "b": 2}}<|eot_id|>]]'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"four"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[It is 4.<|eot_id|>]]",
    ),
    "turns": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[4<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\n3+3?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[6<|eot_id|>]]",
    ),
}

# DeepSeek-V3: `chat_templates/deepseekv3.jinja` of trl 1.16.0, whose prompts go on with `<think>\n`, unlike those of the
# package's V3 renderer; its texts are the same. It is told of no tools and has no place for reasoning; an answer to tool
# outputs follows them without a role.
DEEPSEEK_CALL = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n%s\n```<｜tool▁call▁end｜>"
DEEPSEEK_ADDS_2, DEEPSEEK_ADDS_3 = DEEPSEEK_CALL % '{"a": 2, "b": 2}', DEEPSEEK_CALL % '{"a": 3, "b": 3}'
DEEPSEEK = {
    "use": (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>2+2?<｜Assistant｜>"
        f"[[<｜tool▁calls▁begin｜>{DEEPSEEK_ADDS_2}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>]]"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>four<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
        "[[It is 4.<｜end▁of▁sentence｜>]]",
    ),
    "two": (
        "<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>"
        f"[[Both.<｜tool▁calls▁begin｜>{DEEPSEEK_ADDS_2}\n{DEEPSEEK_ADDS_3}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>]]"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>four<｜tool▁output▁end｜>"
        "<｜tool▁output▁begin｜>six<｜tool▁output▁end｜><｜tool▁outputs▁end｜>[[4 and 6.<｜end▁of▁sentence｜>]]",
    ),
    "turns": (
        "<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>[[4<｜end▁of▁sentence｜>]]"
        "<｜User｜>3+3?<｜Assistant｜>[[6<｜end▁of▁sentence｜>]]",
    ),
}

# GLM-4.5: `chat_templates/glm4moe.jinja` of trl 1.16.0, masks as in its `glm4moe_training.jinja`. Prompts end with
# `<|assistant|>` alone, so the line break behind it is sampled; an answer ends with the role of the next message, which the
# template writes with that.
GLM_TOOLS = (
    "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{TOOL}\n</tools>\n\n"
    "For each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
    "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>"
)
GLM_CALL = (
    "\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>%d</arg_value>\n"
    "<arg_key>b</arg_key>\n<arg_value>%d</arg_value>\n</tool_call>"
)
GLM = {
    "use": (
        f"[gMASK]<sop>{GLM_TOOLS}<|system|>\nBe brief.<|user|>\n2+2?<|assistant|>"
        f"[[\n<think>I add.</think>{GLM_CALL % (2, 2)}<|observation|>]]\n<tool_response>\nfour\n</tool_response>"
        "<|assistant|>[[\n<think>Four.</think>\nIt is 4.<|user|>]]",
    ),
    "two": (
        f"[gMASK]<sop>{GLM_TOOLS}<|user|>\n2+2?<|assistant|>"
        f"[[\n<think></think>\nBoth.{GLM_CALL % (2, 2)}{GLM_CALL % (3, 3)}<|observation|>]]"
        "\n<tool_response>\nfour\n</tool_response>\n<tool_response>\nsix\n</tool_response>"
        "<|assistant|>[[\n<think></think>\n4 and 6.<|user|>]]",
    ),
    "turns": (
        "[gMASK]<sop><|user|>\n2+2?<|assistant|>[[\n<think>Two and two.</think>\n4<|user|>]]",
        "[gMASK]<sop><|user|>\n2+2?<|assistant|>\n<think></think>\n4<|user|>\n3+3?"
        "<|assistant|>[[\n<think>Three and three.</think>\n6<|user|>]]",
    ),
}

# GPT-OSS: `templates/gpt_oss.jinja`. Prompts end with `<|start|>assistant`, so the model samples its channels, the header of
# what follows its reasoning, and the name of the tool.
OSS_SYSTEM = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "Current date: DATE\n\nReasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
OSS_TOOLS = (
    "# Tools\n\n## functions\n\nnamespace functions {\n\n// Adds.\ntype add = (_: {\na: number,\nb: number,\n}) => any;\n\n"
    "} // namespace functions<|end|>"
)
OSS_USE = (
    f"{OSS_SYSTEM}\nCalls to these tools must go to the commentary channel: 'functions'.<|end|>"
    f"<|start|>developer<|message|># Instructions\n\nBe brief.\n\n{OSS_TOOLS}<|start|>user<|message|>2+2?<|end|>"
    "<|start|>assistant[[<|channel|>analysis<|message|>I add.<|end|>"
    '<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{"a": 2, "b": 2}<|call|>]]'
    '<|start|>functions.add to=assistant<|channel|>commentary<|message|>"four"<|end|>'
    "<|start|>assistant[[<|channel|>analysis<|message|>Four.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>]]"
)
GPT_OSS = {
    "use": (OSS_USE,),
    "turns": (
        f"{OSS_SYSTEM}<|end|><|start|>user<|message|>2+2?<|end|><|start|>assistant[[<|channel|>analysis<|message|>Two and two."
        "<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>]]",
        f"{OSS_SYSTEM}<|end|><|start|>user<|message|>2+2?<|end|><|start|>assistant<|channel|>final<|message|>4<|end|>"
        "<|start|>user<|message|>3+3?<|end|><|start|>assistant[[<|channel|>analysis<|message|>Three and three."
        "<|end|><|start|>assistant<|channel|>final<|message|>6<|return|>]]",
    ),
}

MARKS: dict[str, dict[str, tuple[str, ...]]] = {
    "qwen3": QWEN3,
    "nemotron": NEMOTRON,
    "chatml": CHATML,
    "smollm": CHATML,  # templates/smollm2.jinja, for which the house's ChatML is loaded, tools and reasoning added
    "llama": LLAMA,
    "deepseek": DEEPSEEK,
    "glm": GLM,
    "gpt-oss": GPT_OSS,
}
