"""Load an exported model with transformers alone, and ask it: ``python docs/ask.py FOLDER [QUESTION]``."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
folder = sys.argv[1]
questions = sys.argv[2:] or [
    "タロウは ケーキを 4 もち、 ふたつ なくしました。 のこりは いくつ ですか。\nこたえ:",
    "8 にちに ユミは ペンを 2 みました。 ペンは いくつ ですか。\nこたえ:",
    "Lucy puts books, eggs, hats, pens. How many?\nAnswer:",
]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
for question in questions:
    prompt = tokenizer(question, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{question} {answer.split(chr(10))[0].strip()}")
