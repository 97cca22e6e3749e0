"""Data sets written by a teacher behind any OpenAI-compatible endpoint (LLaVA-CoT section 3.2).

`run.annotate` is the whole of it. `staged` writes four-stage answers to questions with known
answers, `instruct` the three kinds of LLaVA (arXiv 2304.08485) from captions and boxes. Both ask
through `client`, which keeps to rate and spending limits and writes every reply to the `journal`
before it is used; a restart reads replies from there, so none is paid for twice.
"""
