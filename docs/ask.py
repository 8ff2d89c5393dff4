"""Load an exported model with transformers alone, and ask it something: ``python docs/ask.py FOLDER [QUESTION]``."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
question = sys.argv[2] if len(sys.argv) > 2 else "QUESTION"
prompt = tokenizer(question, return_tensors="pt", return_token_type_ids=False)
answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
print(f"{question} → {tokenizer.decode(answer, skip_special_tokens=True)}")
